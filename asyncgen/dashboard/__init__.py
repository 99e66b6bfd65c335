"""What a person sees of a running flow: bars in a terminal or a notebook, plain lines elsewhere, nothing if told so.

``figures`` is pure, and ``recent`` what it remembers; ``screen`` and ``notebook`` draw with tqdm,
``views`` chooses among them. They only read snapshots.
"""

from asyncgen.dashboard.patient import terminals_held, wait_for_terminals
from asyncgen.dashboard.screen import bars
from asyncgen.dashboard.views import choose_view, plain_lines, progress, tell

__all__ = ["bars", "choose_view", "plain_lines", "progress", "tell", "terminals_held", "wait_for_terminals"]
