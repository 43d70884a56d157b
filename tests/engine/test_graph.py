"""A graph in API form before it runs: what is said of it, whatever is in it."""

from __future__ import annotations

import copy
import sys
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def graphs(pack: ModuleType) -> ModuleType:
    return sys.modules[f"{pack.__name__}.nodes.graph"]


def chain() -> dict[str, Any]:
    return {
        "1": {"class_type": "Load", "inputs": {"file": "a.safetensors"}, "_meta": {"title": "The file"}},
        "2": {"class_type": "Size", "inputs": {"width": 64, "model": ["1", 0]}},
        "3": {"class_type": "Sample", "inputs": {"model": ["1", 0], "size": ["2", 0], "seed": 5, "strength": 0.5}},
    }


def test_titles_are_the_users_or_the_menus(graphs: ModuleType) -> None:
    graph = graphs.Graph(chain(), lambda kind: f"The {kind}")
    assert [graph.title_of(node) for node in graph] == ["The file", "The Size", "The Sample"]


def test_the_same_work_has_the_same_signature(graphs: ModuleType) -> None:
    """Seeds, strengths and ids are no work; sizes and files are, also those of nodes before."""
    signature = graphs.Graph(chain()).signature("3")
    same = chain()
    same["3"]["inputs"] |= {"seed": 6, "strength": 0.7}
    renamed = {{"1": "10", "2": "20", "3": "30"}[key]: node for key, node in same.items()}
    renamed["20"]["inputs"]["model"] = renamed["30"]["inputs"]["model"] = ["10", 0]
    renamed["30"]["inputs"]["size"] = ["20", 0]
    assert graphs.Graph(renamed).signature("30") == signature
    for node, name, value in (("1", "file", "b.safetensors"), ("2", "width", 128), ("3", "steps_of_size", 3)):
        other = chain()
        other[node]["inputs"][name] = value
        assert graphs.Graph(other).signature("3") != signature


def test_a_value_may_come_from_a_primitive(graphs: ModuleType) -> None:
    prompt = chain()
    prompt["4"] = {"class_type": "PrimitiveInt", "inputs": {"value": 96}}
    prompt["2"]["inputs"]["width"] = ["4", 0]
    assert graphs.Graph(prompt).value("2", "width") == 96
    prompt["4"]["class_type"] = "Random"
    assert graphs.Graph(prompt).value("2", "width") is None
    prompt["4"] = {"class_type": "PrimitiveInt", "inputs": {"value": ["4", 0]}}
    assert graphs.Graph(prompt).value("2", "width") is None


@pytest.mark.parametrize("prompt", [None, [], "a", 5, {str(i): {} for i in range(10_001)}])
def test_what_is_no_graph_is_refused(graphs: ModuleType, prompt: Any) -> None:
    with pytest.raises(graphs.LeanVideoError, match="no graph in API form"):
        graphs.Graph(prompt)


def test_ten_thousand_nodes_in_a_row_and_many_ways_between_few(graphs: ModuleType) -> None:
    """Neither depth nor the number of ways is a danger: every node is looked at once."""
    row = {str(i): {"class_type": "A", "inputs": {"x": [str(i - 1), 0]} if i else {}} for i in range(10_000)}
    graph = graphs.Graph(row)
    assert len(graph.signature("9999")) == 24
    assert graph.upstream("9999", "B") is None
    wide = {f"{layer}:{i}": {"class_type": "A", "inputs": {f"x{j}": [f"{layer - 1}:{j}", 0] for j in range(10)} if layer else {}} for layer in range(40) for i in range(10)}
    graph = graphs.Graph(wide)
    assert graph.upstream("39:0", "B") is None
    assert graph.signature("39:0") == graph.signature("39:1")


values = st.one_of(
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.none(),
    st.lists(st.integers(), max_size=3),
    st.tuples(st.sampled_from("01234567"), st.integers(0, 2)).map(list),
)
node = st.one_of(
    values,
    st.fixed_dictionaries({"class_type": st.sampled_from(["A", "B", 5])}, optional={"inputs": st.one_of(values, st.dictionaries(st.sampled_from("xyz"), values)), "_meta": values}),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(prompt=st.dictionaries(st.sampled_from("01234567"), node))
def test_any_graph_is_read_to_the_end(graphs: ModuleType, prompt: dict[str, Any]) -> None:
    """Circles, links to nowhere, nodes that are none: every question has an answer, and the prompt is left as it is."""
    before = copy.deepcopy(prompt)
    graph = graphs.Graph(prompt)
    for node_id in graph:
        assert isinstance(graph.title_of(node_id), str)
        assert len(graph.signature(node_id)) == 24
        assert graph.upstream(node_id, graph.type_of(node_id)) == node_id
        found = graph.upstream(node_id, "B")
        assert found is None or graph.type_of(found) == "B"
        graph.value(node_id, "x")
        graph.source(node_id, "y")
    assert prompt == before
