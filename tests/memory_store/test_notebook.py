"""How memories and answers look where somebody evaluates them: in a prompt and in a notebook."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from memory_store import MemoryWriter, open_memory
from memory_store.notebook import html_pairs, html_table


def test_a_memory_and_an_answer_show_what_they_are(tmp_path: Path, rng: np.random.Generator) -> None:
    vectors = rng.standard_normal((30, 4), dtype=np.float32)
    with MemoryWriter(str(tmp_path), dim=4) as writer:
        writer.append(pa.table({"fact_id": np.arange(30)}), vectors)
        assert repr(writer) == f"MemoryWriter({str(tmp_path)!r}, dim=4, dtype='float32', rows=30, open)"
    assert "closed" in repr(writer)
    with open_memory(str(tmp_path), shards=2) as memory:
        found = memory.search(vectors[:12], k=7)
        shown = memory._repr_html_()
        assert "<td" in shown
        for text in (str(tmp_path), "float32 [4]", "exact", "local"):
            assert text in shown
        stats = memory.stats()
        assert repr(stats) == f"MemoryStats({str(tmp_path)!r}, generation=1, facts=30, dim=4, shards=2, recall=1.000)"
        assert stats._repr_html_().count("<tr>") == 1 + 2
    assert "closed" in memory._repr_html_()
    html = found._repr_html_()
    assert "12 queries, the first 10; k = 7" in html
    assert html.count("<tr>") == 1 + 10
    assert f"<td>{found.fact_ids_BK[0, 0]} (" in html
    assert "queries=12" in repr(found)


def test_nothing_that_is_shown_becomes_markup() -> None:
    assert "<b>" not in html_pairs("<b>", {"<b>": "<b>"}) + html_table("<b>", ["<b>"], [["<b>"]])
