"""What a graph will take before it runs, node by node, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..lean_video.errors import LeanVideoError
from ..lean_video.models import svd
from ..lean_video.models.planning import MIB, Budget, Clip, Fit
from ..lean_video.vram.device import device_profile
from ..lean_video.vram.store import Store
from . import host
from .graph import Graph
from .interpolation import choose_interpolator
from .svd import open_checkpoint

LOADER, CONDITIONING, SAMPLER, PLAN = "LeanVideoSVDLoader", "LeanVideoSVDConditioning", "LeanVideoTemporalSampler", "LeanVideoVRAMPlan"
HOST_ONLY = (LOADER, PLAN, "LeanVideoCombine", "LeanVideoLoadFrames", "LeanVideoVRAMMonitor")


@dataclass(frozen=True)
class Card:
    """What the graph is held against: the device, its memory and what of that a run can have, in bytes. `pretended` where there is no such card here."""

    device: torch.device
    name: str
    total: int
    free: int
    pretended: bool = False


@dataclass(frozen=True)
class Change:
    """A change that makes a node fit: inputs to set, as (node, input, value), and words for a button."""

    text: str
    inputs: tuple[tuple[str, str, Any], ...]


@dataclass(frozen=True)
class Expected:
    """What a node will hold of the device at most, in bytes, and how that is known: planned, measured, nothing, or unknown with the reason."""

    source: str
    peak: int | None = None
    why: str | None = None
    changes: tuple[Change, ...] = ()
    is_refused: bool = False  # whatever the device has free


def preflight(prompt: object, card: Card, measured: Callable[[str], int | None], is_quick: bool = False) -> dict[str, Any]:
    """The answer to a graph in API form, as JSON.

    measured  what a node with a signature (see `Graph`) took when it ran here, in bytes
    is_quick  leaves out changes of length and size, which take some seconds to find

    Raises LeanVideoError for what is no graph.
    """
    graph = Graph(prompt, host.display_name)
    nodes: list[dict[str, Any]] = []
    for node_id in graph:
        expected = _expected(graph, node_id, card, measured, is_quick)
        fits = None if expected.peak is None else expected.peak <= card.free and not expected.is_refused
        changes = [{"text": change.text, "set": [{"node": node, "input": name, "value": value} for node, name, value in change.inputs]} for change in expected.changes]
        nodes.append(
            {
                "id": node_id,
                "type": graph.type_of(node_id),
                "title": graph.title_of(node_id),
                "source": expected.source,
                "peak": expected.peak,
                "why": expected.why,
                "changes": changes,
                "fits": fits,
            }
        )
    known = [node for node in nodes if node["peak"] is not None]
    highest = max(known, key=lambda node: node["peak"], default=None)
    return {
        "device": {"name": card.name, "total": card.total, "free": card.free, "pretended": card.pretended},
        "peak": None if highest is None else highest["peak"],
        "peak_node": None if highest is None else highest["id"],
        "fits": False if any(node["fits"] is False for node in nodes) else None if any(node["source"] == "unknown" for node in nodes) else True,
        "unknown": sum(node["source"] == "unknown" for node in nodes),
        "nodes": nodes,
    }


def is_planned(kind: str) -> bool:
    """Whether nodes of this type say themselves what they will take."""
    return kind in _PLANNED or kind in HOST_ONLY


def card_here(pretended_mib: float | None = None) -> Card:
    """The device that ComfyUI computes on, or a card of so many MiB that nothing else uses. Raises LeanVideoError."""
    if pretended_mib is not None:
        if not 1 <= pretended_mib <= 2**22:
            raise LeanVideoError(f"A card of {pretended_mib:g} MiB is none to hold a graph against: choose one of 1 MiB to 4 TiB.")
        size = int(pretended_mib * MIB)
        return Card(torch.device("cuda"), f"a card of {pretended_mib / 1024:g} GiB", size, size, pretended=True)
    name, total = host.card()
    return Card(host.device(), name, host.host_bytes() if total is None else total, host.reachable_bytes())


def _expected(graph: Graph, node_id: str, card: Card, measured: Callable[[str], int | None], is_quick: bool) -> Expected:
    kind = graph.type_of(node_id)
    if kind in HOST_ONLY:
        return Expected("nothing", 0)
    plan = _PLANNED.get(kind)
    if plan is not None:
        try:
            return plan(graph, node_id, card, is_quick)
        except LeanVideoError as error:
            return Expected("unknown", why=str(error))
    peak = measured(graph.signature(node_id))
    if peak is not None:
        return Expected("measured", peak)
    return Expected("unknown", why="This node has not run here yet with things of this size.")


# Nodes of ours, by the planner that they run under


def _encoding(graph: Graph, node_id: str, card: Card, is_quick: bool) -> Expected:
    clip = _clip(graph, node_id, card, frames=1)
    peak = clip.encode_peak()
    if peak <= card.free or card.device.type == "cpu":
        return Expected("planned", peak)
    return Expected("planned", 0, why="The image will be encoded on the host, since the card has no room for that.")


def _sampling(graph: Graph, node_id: str, card: Card, is_quick: bool) -> Expected:
    return _by_plan(graph, node_id, card, Clip.fit_sampling, is_quick)


def _decoding(graph: Graph, node_id: str, card: Card, is_quick: bool) -> Expected:
    return _by_plan(graph, node_id, card, Clip.fit_decoding, is_quick)


def _by_plan(graph: Graph, node_id: str, card: Card, fit: Callable[[Clip, torch.device, Budget], Fit[Any]], is_quick: bool) -> Expected:
    clip = _clip(graph, node_id, card)
    teller = graph.source(node_id, "plan") or node_id  # a VRAM Plan that is connected has the budget
    budget_mib = graph.value(teller, "budget_mib", 0)
    if not isinstance(budget_mib, int) or budget_mib < 0:
        raise LeanVideoError("The budget is not known before the graph runs.")
    limit: Budget = budget_mib * MIB or (card.free if card.device.type != "cpu" else "max")
    try:
        peak = fit(clip, card.device, limit).peak
    except LeanVideoError:
        peak = None
    if peak is not None and peak <= card.free:
        return Expected("planned", peak)
    least = fit(clip, card.device, "min").peak
    if least > card.free:
        return Expected("planned", least, "This is the smallest plan there is.", () if is_quick else _smaller(graph, node_id, card, clip), is_refused=True)
    free_again = Change("Plan for what is free: the same frames, in less memory", ((teller, "budget_mib", 0),))
    if peak is None:
        return Expected("planned", least, f"The budget of {budget_mib:,} MiB is too small for this.", (free_again,), is_refused=True)
    return Expected("planned", peak, changes=(free_again,))


def _smaller(graph: Graph, node_id: str, card: Card, clip: Clip) -> tuple[Change, ...]:
    frames, size = clip.alternatives(card.device, card.free)
    sampler, conditioning = graph.upstream(node_id, SAMPLER), graph.upstream(node_id, CONDITIONING)
    changes: list[Change] = []
    if frames and sampler is not None:
        changes.append(Change(f"{frames} frames of this size", ((sampler, "frames", frames),)))
    if size is not None and conditioning is not None:
        changes.append(Change(f"{clip.shape.frames} frames of {size[0]}x{size[1]}", ((conditioning, "width", size[0]), (conditioning, "height", size[1]))))
    return tuple(changes)


def _clip(graph: Graph, node_id: str, card: Card, frames: int | None = None) -> Clip:
    loader, sampler, conditioning = (graph.upstream(node_id, kind) for kind in (LOADER, SAMPLER, CONDITIONING))
    if loader is None or conditioning is None:
        raise LeanVideoError("Nothing says which model and which size: connect an SVD Loader and an SVD Conditioning.")
    if frames is None:
        frames = graph.value(sampler, "frames") if sampler is not None else None
    width, height = graph.value(conditioning, "width"), graph.value(conditioning, "height")
    if not all(isinstance(value, int) for value in (frames, width, height)):
        raise LeanVideoError("The size of the clip is not known before the graph runs.")
    assert frames is not None
    model = open_checkpoint(graph.value(loader, "checkpoint"), graph.value(loader, "precision", "auto"), card.device.type)
    svd.check_clip(frames, width, height)
    width, height = svd.round_size(model, width, height)
    store = Store(host.user_folder() / "planning.json")
    workspace = 0 if card.pretended else device_profile(card.device, model.dtype, store).workspace
    return Clip(model.parts, model.precision, frames, width, height, store, workspace)


def _interpolating(graph: Graph, node_id: str, card: Card, is_quick: bool) -> Expected:
    from ..lean_video.interpolation.cost import choose_batch, peak_bytes
    from ..lean_video.interpolation.rife import Rife

    conditioning = graph.upstream(node_id, CONDITIONING)
    width, height = (graph.value(conditioning, side) for side in ("width", "height")) if conditioning is not None else (None, None)
    if not (isinstance(width, int) and isinstance(height, int)):
        raise LeanVideoError("The size of the frames is not known before the graph runs.")
    interpolator = choose_interpolator(graph.value(node_id, "model"), half=card.pretended or host.half_is_faster())
    if not isinstance(interpolator, Rife):
        return Expected("nothing", 0)
    batch = choose_batch(interpolator, width, height, lambda _: card.free if card.device.type != "cpu" else None)
    return Expected("planned", peak_bytes(interpolator, width, height, batch))


_PLANNED: Mapping[str, Callable[[Graph, str, Card, bool], Expected]] = {
    CONDITIONING: _encoding,
    SAMPLER: _sampling,
    "LeanVideoTemporalDecode": _decoding,
    "LeanVideoKeyframeInterpolation": _interpolating,
    "LeanVideoInterpolateFile": _interpolating,
}
