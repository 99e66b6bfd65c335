"""What a person sees of a running flow: bars in a terminal or a notebook, plain lines elsewhere, nothing if told so.

``figures`` and ``bottleneck`` are pure; ``views`` and ``notebook`` know tqdm. Views only read snapshots.
"""

from asyncgen.dashboard.views import bars, choose_view, plain_lines, progress, tell

__all__ = ["bars", "choose_view", "plain_lines", "progress", "tell"]
