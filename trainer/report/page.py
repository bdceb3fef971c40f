"""The report as one HTML page: no script, no font, no picture from elsewhere; light and dark."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from trainer.report.figures import (
    Figure,
    accuracy_figures,
    learning_figures,
    relation_figure,
    seconds_text,
    staleness_figures,
    time_figures,
)
from trainer.report.record import RunRecord
from trainer.report.style import STYLE
from trainer.report.svg import count, percent

__all__ = ["document", "figures", "render", "section", "table", "tiles"]

_RELATION_ROWS = 200


def render(run: RunRecord) -> str:
    """The page of one run. Everything that comes from data is escaped."""
    body = [
        _header(run),
        section("Learning", figures(learning_figures(run))),
        section("A memory that changes while the model trains", figures(staleness_figures(run))),
        *(_evaluation(split, found) for split, found in run.evaluations.items()),
        section("Time", figures(time_figures(run))),
        _settings(run),
        "<footer>The data behind this page: report.json, metrics.jsonl and evaluation-&lt;split&gt;.json beside it."
        "</footer>",
    ]
    if not run.evaluations:
        body.insert(3, section("Accuracy", "<p>Not evaluated yet: <code>hmn evaluate</code> adds this part.</p>"))
    return document(f"{run.name}: run report", body)


# Pieces that the comparison of runs uses as well


def document(title: str, body: Iterable[str]) -> str:
    """A whole page around escaped parts."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, content: str) -> str:
    """A titled part of the page; nothing where there is no content."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def figures(shown: Sequence[Figure], wide: bool = False) -> str:
    """Figures side by side where there is room."""
    drawn = [f"<figure><h3>{escape(one.title)}</h3><p>{escape(one.text)}</p>{one.svg}</figure>" for one in shown]
    return f'<div class="figures{" wide" if wide else ""}">{"".join(drawn)}</div>' if drawn else ""


def tiles(shown: Sequence[tuple[str, str, str]]) -> str:
    """(what, value, note) in large type."""
    cells = [
        f'<div class="tile"><span class="what">{escape(what)}</span><span class="value">{escape(value)}</span>'
        f'<span class="note">{escape(note).replace(" %", "&nbsp;%")}</span></div>'
        for what, value, note in shown
    ]
    return f'<div class="tiles">{"".join(cells)}</div>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """Texts, escaped. numbers: places of the columns that stand right."""
    look = ['class="number"' if at in numbers else "" for at in range(len(columns))]
    head = "".join(f"<th {kind}>{escape(name)}</th>" for kind, name in zip(look, columns, strict=True))
    lines = [
        "<tr>" + "".join(f"<td {kind}>{escape(cell)}</td>" for kind, cell in zip(look, row, strict=True)) + "</tr>"
        for row in rows
    ]
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


# The parts of a run's page


def _header(run: RunRecord) -> str:
    config, checkpoint = run.config, run.checkpoint or {}
    total = checkpoint.get("total_steps")
    ended = checkpoint.get("step") == total if total else False
    about = [
        f"{config.get('model.encoder', checkpoint.get('encoder', 'unknown'))} encoder",
        f"memory {config.get('memory.url', '?')}",
        "finished" if ended else "not finished",
    ]
    if run.environment.get("at"):
        about.append(f"started {str(run.environment['at'])[:16].replace('T', ' ')} UTC")
    shown: list[tuple[str, str, str]] = []
    if run.headline:
        split, found = run.headline
        overall = found["overall"]
        low, high = overall["intervals"]["path_accuracy"]
        shown.append(
            (
                f"Right fact read first, {split}",
                percent(overall["path_accuracy"]),
                f"95 % interval {percent(low)} to {percent(high)}, {count(overall['questions'])} questions",
            )
        )
        shown.append((f"Gold fact among {found['k']}", percent(overall["recall"]), f"recall@{found['k']}, {split}"))
    if run.train:
        size = run.train[-1].get("candidates", 0)
        of = f"of {count(run.facts)} facts, {percent(size / run.facts)}" if run.facts else "facts, shared by a batch"
        shown.append(("Softmax of a step", count(size), of))
    if run.seconds:
        shown.append(("Training", seconds_text(run.seconds), f"in {count(run.steps)} steps and refreshes"))
    stale = [line["overlap"] for line in run.refreshes if "overlap" in line]
    if stale:
        shown.append(("Stale top-K still right", percent(sorted(stale)[len(stale) // 2]), "median over the refreshes"))
    lead = " · ".join(about)
    return (
        f'<header><p class="kind">Run report</p><h1>{escape(run.name)}</h1><p class="lead">{escape(lead)}</p></header>'
        + (tiles(shown) if shown else "<p>This run has recorded nothing yet.</p>")
    )


def _evaluation(split: str, found: Mapping[str, Any]) -> str:
    overall = found["overall"]
    names = {
        "path_accuracy": "right path read first",
        "answer_accuracy": "right answer read first",
        "recall": f"gold fact among {found['k']}",
        "mrr": "mean reciprocal rank",
    }
    rows = [
        (
            name,
            f"{overall[key]:.3f}" if key == "mrr" else percent(overall[key]),
            _interval(overall["intervals"][key], key),
        )
        for key, name in names.items()
    ]
    missing = (
        f", {count(found['missing'])} of them about facts that the memory does not hold" if found["missing"] else ""
    )
    source = f" of {found['source']}" if found.get("source") else ""
    text = (
        f"{count(overall['questions'])} questions{source}{missing}; generation {found['generation']}, a softmax over "
        f"{found['softmax_size']:.3g} facts for each."
    )
    summary = f"<div><p>{escape(text)}</p>{table(('', 'value', '95 % interval'), rows, numbers=(1, 2))}</div>"
    against = figures(accuracy_figures({split: found}))
    by_relation = relation_figure(found)
    content = f'<div class="figures"><div>{summary}</div>{against}</div>'
    if by_relation:
        content += figures([by_relation], wide=True) + _all_relations(found["relations"])
    return section(f"Accuracy: {split}", content + _examples(found))


def _interval(ends: Sequence[float], key: str) -> str:
    low, high = ends
    return f"{low:.3f} – {high:.3f}" if key == "mrr" else f"{100 * low:.1f} – {100 * high:.1f} %"


def _all_relations(relations: Mapping[str, Mapping[str, Any]]) -> str:
    ordered = sorted(relations.items(), key=lambda item: (-item[1]["questions"], item[0]))
    rows = [
        (
            name,
            count(score["questions"]),
            percent(score["path_accuracy"]),
            _interval(score["intervals"]["path_accuracy"], ""),
            percent(score["answer_accuracy"]),
            percent(score["recall"]),
        )
        for name, score in ordered[:_RELATION_ROWS]
    ]
    more = len(ordered) - len(rows)
    columns = ("relation", "questions", "right path", "95 % interval", "right answer", "among K")
    listed = table(columns, rows, numbers=(1, 2, 3, 4, 5))
    note = f"<p>{count(more)} more in the file of the evaluation.</p>" if more else ""
    return f"<details><summary>{count(len(ordered))} relations as a table</summary>{listed}{note}</details>"


def _examples(found: Mapping[str, Any]) -> str:
    parts = []
    if found["wrong"]:
        rows = [
            (
                one["question"],
                _fact(_told_apart(one, "read"), one["read_relation"], one.get("read_objects")),
                _fact(_told_apart(one, "gold"), one["gold_relation"], ()),
                str(one["gold_rank"] or f"beyond {found['k']}"),
            )
            for one in found["wrong"]
        ]
        heading = f"<h3>Read something else: {len(rows)} of {count(found['wrong_in_all'])}</h3>"
        parts.append(heading + table(("question", "read", "meant", "rank of it"), rows, numbers=(3,)))
    if found["right"]:
        rows_right = [
            (
                one["question"],
                _fact(one["read_subject"] or one["read_subject_id"], one["read_relation"], one["read_objects"]),
            )
            for one in found["right"]
        ]
        parts.append("<h3>Read the right fact: some of them</h3>" + table(("question", "read"), rows_right))
    return f'<div class="examples">{"".join(parts)}</div>' if parts else ""


def _told_apart(wrong: Mapping[str, Any], which: str) -> object:
    """The name of the subject read or meant; with its id where both have the same."""
    name, entity_id = wrong.get(f"{which}_subject"), wrong[f"{which}_subject_id"]
    is_shared = wrong.get("read_subject") == wrong.get("gold_subject")
    return f"{name} ({entity_id})" if name and is_shared else name or entity_id


def _fact(subject: object, relation: object, objects: Sequence[str] | None) -> str:
    leads_to = f": {', '.join(objects)}" if objects else ""
    return f"{subject or '–'}, {relation or '–'}{leads_to}"


def _settings(run: RunRecord) -> str:
    settings = table(("setting", "value"), [(name, value_text(value)) for name, value in run.config.items()])
    machine: dict[str, object] = {}
    if run.environment:
        packages = run.environment.get("packages", {})
        machine |= {name: packages[name] for name in packages if packages[name]}
        machine |= {name: run.environment.get(name) for name in ("python", "system", "processor", "cores")}
    if run.checkpoint:
        machine |= {f"checkpoint {name}": run.checkpoint.get(name) for name in ("step", "total_steps", "generation")}
        machine |= {name: run.checkpoint.get(name) for name in ("fingerprint", "features")}
    about = table(("made with", ""), [(name, value_text(value)) for name, value in machine.items()]) if machine else ""
    return section(
        "Settings and versions", f'<div class="figures settings"><div>{settings}</div><div>{about}</div></div>'
    )


def value_text(value: object) -> str:
    """A setting as a person writes it."""
    if isinstance(value, str):
        return value
    return "–" if value is None else json.dumps(value, ensure_ascii=False)
