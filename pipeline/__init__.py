"""Raw facts and questions into checked, deduplicated, embedded facts in Arrow files."""

import memory_store  # noqa: F401  # sets how threads wait, before torch is loaded
