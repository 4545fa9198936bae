"""Tables of results in Markdown, and their places in documents."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from regiondh_d2.utils.errors import RegionDHError
from regiondh_d2.utils.file_io import replace_when_complete

from .claims import markdown_claims
from .queries import SHOWN
from .reference_tables import markdown_classes, markdown_references
from .result_files import ResultFolder, require_metrics
from .rows import Row

__all__ = [
    "fill_document",
    "fill_documents",
    "has_place",
    "markdown_differences",
    "markdown_table",
    "require_dataset",
]

MARK = "†"
TIES = ("pessimistic", "optimistic")
BLOCK = re.compile(
    r"(?P<begin><!-- (?P<what>table|differences|claims|references|classes): "
    r"(?P<dataset>\S+)(?P<names>[^>]*) -->\n).*?"
    r"(?P<end><!-- end -->)",
    re.DOTALL,
)


def markdown_table(
    rows: Sequence[Row], results: ResultFolder, dataset: str, topk: int = 1000
) -> str:
    """A table of the runs that are done: mean and standard deviation over seeds.

    It also shows the means of the smallest and the largest MAP_min over all orders of ties, and the
    CPU milliseconds and the megabytes that encoding an image takes, where they were measured. Rows
    without any run are left out. Rows with a result that has an ``audit`` are marked, with its text
    below the table.

    Args:
        rows: in the order of the table.
        results, dataset: where the results are, and the dataset they are of.
        topk: the metrics' cut-off.

    Raises:
        RegionDHError: a result can't be used; the text names its file.
    """
    marked: dict[str, list[str]] = {}
    lines = [
        f"| method | row | bits | seeds | {' | '.join(SHOWN)} | MAP_min over ties | AP50 "
        "| minutes | ms | MB |",
        f"|{'---|' * (len(SHOWN) + 9)}",
    ]
    costs = results.read_encoding_costs()
    names = [f"{m}@{topk}" for m in SHOWN] + [f"MAP_min@{topk}-{end}" for end in TIES]
    for row in rows:
        for bits in row.bits:
            runs = [run for run in row.runs() if run.bits == bits]
            found = {run: results.read(run) for run in runs}
            found = {run: r for run, r in found.items() if r and dataset in r["metrics"]}
            for run, result in found.items():
                require_metrics(result["metrics"][dataset], names, topk, results.row_file(row))
                if result.get("audit"):
                    marked.setdefault(str(result["audit"]), []).append(f"`{run.name}`")
            if found:
                cells = _cells(row, bits, [*found.values()], dataset, topk)
                cells += [f"{c[row.name]:.0f}" if row.name in c else "" for c in costs.values()]
                lines.append(f"| {' | '.join(cells)} |")
    notes = [f"\n{MARK} {', '.join(names)}: {note}" for note, names in marked.items()]
    return "\n".join([*lines, *notes]) + "\n"


def markdown_differences(found: Sequence[dict], names: Sequence[str] = ()) -> str:
    """A table of the result of :func:`.differences`.

    Args:
        found: the differences.
        names: rows against which they are shown; none means all.
    """
    shown = ("MAP", "MAP_min", "ACG")
    lines = [
        f"| against | bits | {' | '.join(shown)} |",
        f"|{'---|' * (len(shown) + 2)}",
    ]
    cells = {(d["against"], d["bits"], d["metric"]): d for d in found}
    for against, bits in dict.fromkeys((d["against"], d["bits"]) for d in found):
        if not names or against in names:
            row = [cells[against, bits, metric] for metric in shown]
            values = [f"{d['difference']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})" for d in row]
            lines.append(f"| {against} | {bits} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def require_dataset(rows: Sequence[Row], results: ResultFolder, dataset: str) -> None:
    """Check that a table of a dataset would not be empty.

    Raises:
        RegionDHError: no run of any row was measured on it; the text names the datasets that have
            results.
    """
    found = [results.read(run) for row in rows for run in row.runs()]
    known = sorted({name for result in found if result for name in result["metrics"]})
    if dataset not in known:
        raise RegionDHError(
            f"no result in {results.path} is of dataset {dataset!r}; there are results of: "
            f"{', '.join(known) or 'none'}"
        )


def fill_document(text: str, rows: Sequence[Row], results: ResultFolder) -> str:
    """Fill the places for tables in a document.

    A place is the text between ``<!-- table: DATASET ROW... -->`` (:func:`markdown_table`),
    ``<!-- differences: DATASET REFERENCE ROW... -->`` (:func:`markdown_differences`) or
    ``<!-- claims: NAME... -->`` (:func:`.claims.markdown_claims`; ``all`` for all) or
    ``<!-- references: unseen -->`` or ``seen``, or ``classes`` (:mod:`.reference_tables`), and the
    next ``<!-- end -->``. Without rows, all are shown. A number among the rows selects runs of
    that many bits.

    Args:
        text: the document.
        rows, results: the table of the study and its results.

    Returns:
        The document with new tables.

    Raises:
        RegionDHError: there is no place, or one without an end; or a place has a row or a dataset
            that no result has, or differences without a reference.
    """
    _check_places(text)
    by_name = {row.name: row for row in rows}

    def filled(block: re.Match) -> str:
        words = block["names"].split()
        if block["what"] == "claims":
            asked = [name for name in (block["dataset"], *words) if name != "all"]
            return f"{block['begin']}\n{_claims_table(results, asked)}\n{block['end']}"
        if block["what"] in ("references", "classes"):
            markdown = {"references": markdown_references, "classes": markdown_classes}
            found = results.read_references(block["dataset"])
            table = markdown[block["what"]](found, block["dataset"])
            return f"{block['begin']}\n{table}\n{block['end']}"
        names = [word for word in words if not word.isdecimal()]
        bits = [int(word) for word in words if word.isdecimal()]
        unknown = sorted(set(names) - set(by_name))
        if unknown:
            raise RegionDHError(f"the document asks for unknown rows: {', '.join(unknown)}")
        dataset = block["dataset"]
        if block["what"] == "table":
            require_dataset(rows, results, dataset)
            picked = [by_name[name] for name in names or by_name]
            if bits:
                picked = [dataclasses.replace(row, bits=tuple(bits)) for row in picked]
            table = markdown_table(picked, results, dataset)
        else:
            if not names:
                raise RegionDHError(
                    f"a place for differences must name a row: {block['begin'].strip()}"
                )
            found = _read_differences(results, dataset, names.pop(0))
            found = [d for d in found if not bits or d["bits"] in bits]
            table = markdown_differences(found, names)
        return f"{block['begin']}\n{table}\n{block['end']}"

    return BLOCK.sub(filled, text)


def fill_documents(files: Sequence[Path], rows: Sequence[Row], results: ResultFolder) -> None:
    """:func:`fill_document` for files; none is written unless all can be.

    Raises:
        OSError: a file can't be read.
        RegionDHError: see :func:`fill_document`; the text names the file.
    """
    filled = {}
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise RegionDHError(f"--document {file} is no UTF-8 text") from None
        try:
            filled[file] = fill_document(text, rows, results)
        except RegionDHError as error:
            raise RegionDHError(f"--document {file}: {error}") from error
    for file, text in filled.items():
        with replace_when_complete(file) as temporary:
            temporary.write_text(text, encoding="utf-8")


def has_place(file: Path) -> bool:
    """Whether a document has a place for a table."""
    return BLOCK.search(file.read_text(encoding="utf-8")) is not None


def _claims_table(results: ResultFolder, names: Sequence[str]) -> str:
    found = results.read_claims()
    if not found:
        raise RegionDHError(
            f"{results.claims_file}: no such file; python -m experiments.tables writes it"
        )
    return markdown_claims(found, names)


def _read_differences(results: ResultFolder, dataset: str, reference: str) -> list[dict]:
    found = results.read_differences(dataset, reference)
    if found is None:
        raise RegionDHError(
            f"{results.differences_file(dataset, reference)}: no such file; --summary {dataset} "
            f"--against {reference} writes it"
        )
    return found


def _check_places(text: str) -> None:
    """Check that a document has places for tables, each with an end."""
    begin = None
    for mark in re.finditer(
        r"<!-- *(?:(end)|(?:table|differences|claims|references|classes)\b).*?-->", text
    ):
        if not mark[1] and begin:
            raise RegionDHError(f"the document has no <!-- end --> after {begin}")
        begin = None if mark[1] else mark[0]
    if begin:
        raise RegionDHError(f"the document has no <!-- end --> after {begin}")
    if not BLOCK.search(text):
        raise RegionDHError(
            "the document has no place for a table: write <!-- table: DATASET ROW... --> on a line "
            "and <!-- end --> below it"
        )


def _cells(row: Row, bits: int, found: list[dict], dataset: str, topk: int) -> list[str]:
    def spread(values: list[float], digits: int = 3) -> str:
        mean = f"{np.mean(values):.{digits}f}"
        return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"

    metrics = [r["metrics"][dataset] for r in found]
    shown = [spread([m[f"{name}@{topk}"] for m in metrics]) for name in SHOWN]
    ties = [np.mean([m[f"MAP_min@{topk}-{end}"] for m in metrics]) for end in TIES]
    boxes = [r["box_ap"]["bbox/AP50"] for r in found if "bbox/AP50" in r["box_ap"]]
    title = f"{row.title} {MARK}" if any(r.get("audit") for r in found) else row.title
    return [
        title,
        f"`{row.name}`",
        str(bits),
        str(len(found)),
        *shown,
        f"{ties[0]:.3f} to {ties[1]:.3f}",
        spread(boxes, 1) if boxes else "",
        f"{np.mean([r['minutes'] for r in found]):.1f}",
    ]
