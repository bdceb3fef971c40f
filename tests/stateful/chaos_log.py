"""What `make chaos` did and survived, summed up from its log: python tests/stateful/chaos_log.py build/chaos.jsonl."""

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path


def main() -> None:
    totals: dict[str, Counter[str]] = defaultdict(Counter)
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        totals[run.pop("backend")].update({"runs": 1, **run})
    for backend, counts in totals.items():
        sys.stdout.write(f"{backend}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()) + "\n")


if __name__ == "__main__":
    main()
