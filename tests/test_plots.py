"""What the plots show, read back from their figures."""

import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from builders import CLASS_NAMES, code_set
from regiondh_d2.evaluation.bit_statistics import bit_statistics
from regiondh_d2.evaluation.code_map import code_map
from regiondh_d2.evaluation.curves import DistanceCounts, RadiusCurve
from regiondh_d2.structures.codes import CodeFileError
from regiondh_d2.structures.packed import pack_codes
from regiondh_d2.utils.errors import MissingPackageError
from regiondh_d2.visualization import plots


def lines(figure):
    """The points of each line by its label."""
    return {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}


def legend(figure):
    found = figure.axes[0].get_legend()
    return [] if found is None else [text.get_text() for text in found.get_texts()]


def test_precision_against_recall_of_two_methods():
    first = RadiusCurve(np.array([np.nan, 0.9, 0.5]), np.array([0, 0.3, 1]), np.array([0, 1, 1]))
    second = RadiusCurve(np.array([0.8, 0.7, 0.5]), np.array([0.1, 0.6, 1]), np.ones(3))
    figure = plots.plot_precision_recall({"SSDH": first, "Region-DH": second})
    assert lines(figure)["SSDH"][1:].tolist() == [[0.3, 0.9], [1, 0.5]]
    assert lines(figure)["Region-DH"].tolist() == [[0.1, 0.8], [0.6, 0.7], [1, 0.5]]
    assert legend(figure) == ["SSDH", "Region-DH"]
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("recall", "precision")
    assert legend(plots.plot_precision_recall({"": first})) == []


def test_precision_at_k_counts_from_one():
    figure = plots.plot_precision_at({"a": np.array([1, 0.5]), "b": np.array([0.5, 0.4, 0.3])})
    assert lines(figure)["a"].tolist() == [[1, 1], [2, 0.5]]
    assert lines(figure)["b"].tolist() == [[1, 0.5], [2, 0.4], [3, 0.3]]


def test_a_metric_against_bits_in_ascending_order():
    figure = plots.plot_metric_against_bits({"a": {64: 0.9, 32: 0.7}, "b": {48: 0.5}}, "ACG@1000")
    assert lines(figure)["a"].tolist() == [[32, 0.7], [64, 0.9]]
    assert figure.axes[0].get_xticks().tolist() == [32, 48, 64]
    assert figure.axes[0].get_ylabel() == "ACG@1000"


def test_methods_are_told_apart_without_color():
    values = np.array([1.0])
    drawn = plots.plot_precision_at({str(i): values for i in range(12)}).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn}) == 12


def test_distances_are_shares_of_each_kind_of_pairs():
    counts = DistanceCounts(
        items=np.array([[1, 2, 1], [0, 3, 1]]), relevant=np.array([[1, 1, 0], [0, 2, 0]])
    )
    steps = [p.get_data() for p in plots.plot_distances(counts).axes[0].patches]
    outlines = steps[1::2]
    assert outlines[0].values.tolist() == [0.25, 0.75, 0]
    assert outlines[1].values.tolist() == [0, 0.5, 0.5]
    assert outlines[0].edges.tolist() == [-0.5, 0.5, 1.5, 2.5]


def test_balance_has_a_bar_for_each_bit():
    values = np.zeros((4, 3), bool)
    values[:3, 1] = values[:, 2] = True
    figure = plots.plot_bits(bit_statistics(pack_codes(values), 3))
    bars = {round(b.get_x() + b.get_width() / 2): b for b in figure.axes[0].patches}
    reached = {bit: bar.get_y() + bar.get_height() for bit, bar in bars.items()}
    assert reached == {0: 0, 1: 0.75, 2: 1}
    assert bars[0].get_facecolor() == bars[2].get_facecolor() != bars[1].get_facecolor()
    assert legend(figure) == ["in use", "saturated"]


def test_correlations_are_drawn_on_a_fixed_scale():
    values = np.array([[0, 1, 1], [1, 0, 1], [1, 0, 1]], bool)
    figure = plots.plot_correlation(bit_statistics(pack_codes(values), 3))
    (image,) = figure.axes[0].images
    assert image.get_clim() == (-1, 1)
    assert image.get_array()[:2, :2].tolist() == [
        [pytest.approx(1), pytest.approx(-1)], [pytest.approx(-1), pytest.approx(1)]
    ]  # fmt: skip
    assert image.get_array().mask.tolist() == [[False] * 2 + [True]] * 2 + [[True] * 3]


def test_the_map_shows_images_of_one_class():
    labels = [[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]]
    codes = code_set(np.eye(5), labels=labels, class_names=CLASS_NAMES)
    places, _ = code_map(codes)
    figure = plots.plot_code_map(codes)
    assert {name: p.tolist() for name, p in lines(figure).items()} == {
        "cat": places[[0, 4]].tolist(), "dog": places[[1]].tolist()
    }  # fmt: skip
    assert legend(figure) == ["cat", "dog"]


def test_rare_classes_share_a_color(monkeypatch):
    monkeypatch.setattr(plots, "MAP_CLASSES", 1)
    labels = [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]]
    shown = lines(plots.plot_code_map(code_set(np.eye(4), labels=labels, class_names=CLASS_NAMES)))
    assert {name: len(points) for name, points in shown.items()} == {"dog": 2, "other classes": 2}


def test_a_map_needs_labels():
    with pytest.raises(CodeFileError, match="no labels in the codes of the map"):
        plots.plot_code_map(code_set(np.eye(4)))


def test_svg_for_a_page():
    def draw():
        return plots.plot_precision_at({"a < b": np.array([1, 0.5]), "c": np.array([0.5, 0.4])})

    svg = plots.figure_svg(draw(), "first")
    assert svg == plots.figure_svg(draw(), "first")
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert {"width", "height"}.isdisjoint(root.attrib)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "Precision within the first k answers"} <= set(texts)
    assert plots.INK in svg
    ids = re.findall(r' id="([^"]*)"', svg)
    assert len(ids) == len(set(ids)) > 0
    assert set(ids).isdisjoint(re.findall(r' id="([^"]*)"', plots.figure_svg(draw(), "second")))


def test_saved_complete_or_not_at_all(tmp_path, full_disk):
    figure = plots.plot_precision_at({"": np.array([1, 0.5])})
    plots.save_figure(figure, tmp_path / "new" / "plot.png")
    with Image.open(tmp_path / "new" / "plot.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 16)) > 2
    for name in ("plot.xyz", "plot"):
        with pytest.raises(ValueError, match=rf"{name}: .* is no plot format"):
            plots.save_figure(figure, tmp_path / name)
    size = (tmp_path / "new" / "plot.png").stat().st_size
    for name, limit in (("plot.svg", 1000), ("plot.png", size - 1)):
        with full_disk(limit), pytest.raises(OSError, match=name):
            plots.save_figure(figure, tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_nothing_global_is_touched():
    import matplotlib
    from matplotlib import pyplot

    figures, settings = pyplot.get_fignums(), dict(matplotlib.rcParams)
    plots.figure_svg(plots.plot_precision_at({"": np.array([1, 0.5])}))
    assert pyplot.get_fignums() == figures
    assert dict(matplotlib.rcParams) == settings


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match=r"a plot needs matplotlib.*regiondh_d2\[demo\]"):
        plots.plot_precision_at({"": np.array([1, 0.5])})
