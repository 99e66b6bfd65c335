"""Shows the first stories of a file, wrapped for reading: ``python tools/show_stories.py stories.jsonl 3``."""

from __future__ import annotations

import json
import sys
import textwrap
from itertools import islice
from pathlib import Path


def main(path: Path, count: int) -> None:
    """Prints ``count`` stories of ``path`` with the words they were built from."""
    with path.open(encoding="utf-8") as lines:
        for record in map(json.loads, islice(lines, count)):
            words = ", ".join(record["metadata"]["selected_words"].values())
            print(f"\n--- {record['prompt_id']}: {words}")
            for paragraph in record["content"].splitlines():
                print(textwrap.fill(paragraph, 100))
    print(f"\nAll of them: {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3)
