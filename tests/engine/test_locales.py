"""The texts in other languages: none missing, none left over, none that the page cannot show."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LOCALES = ROOT / "locales"
LANGUAGES = ("en", "zh")
SETTINGS = ROOT / "js" / "vram_monitor.js"
PANEL = (*sorted((ROOT / "js" / "monitor").glob("*.js")), SETTINGS)

# What the panel asks for by a value: `text(EXPRESSION)` → the keys that it stands for there. `key` is passed on by methods, see `passed_on`.
BY_VALUE = {
    "run.status": {"running", "success", "error", "interrupted"},
    "node.source": {"planned", "measured"},
    "key": set(),
    'kind === "device" ? "peak" : "taken"': {"peak", "taken"},
}


def read(language: str, name: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / name).read_text(encoding="utf-8"))


def flat(texts: dict[str, Any], at: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every text."""
    for key, value in texts.items():
        if isinstance(value, dict):
            yield from flat(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value


def placeholders(text: str) -> list[str]:
    return sorted(re.findall(r"\{\w*\}", text))


def is_chinese(text: str) -> bool:
    return re.search(r"[\u4e00-\u9fff]", text) is not None


# The panel


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_texts_of_a_language_are_those_of_english(language: str) -> None:
    english, other = dict(flat(read("en", "main.json"))), dict(flat(read(language, "main.json")))
    assert list(other) == list(english)
    assert [key for key, text in other.items() if not text.strip()] == []
    assert {key: placeholders(text) for key, text in other.items()} == {key: placeholders(text) for key, text in english.items()}


def test_the_panel_has_every_text_that_it_asks_for_and_asks_for_every_text() -> None:
    asked: set[str] = set()
    for file in PANEL:
        source = file.read_text(encoding="utf-8")
        for argument in re.findall(r"\.text\(([^(),]+)", source):
            literal = re.fullmatch(r'"(\w+)"', argument)
            assert literal or argument in BY_VALUE, f"{file.name} asks for text({argument}): which keys may that be?"
            asked |= {literal[1]} if literal else BY_VALUE[argument]
        asked |= passed_on(source)
    assert asked == set(read("en", "main.json")["leanVideo"])


def passed_on(source: str) -> set[str]:
    """Keys given to methods of the panel that ask for their text."""
    found = re.findall(r'this\.(?:section|say)\("(\w+)"|\{ key: "(\w+)" \}|result\.key \?\? "(\w+)"', source)
    return {key for keys in found for key in keys if key}


# The nodes


def declared(node: Any, title: str) -> dict[str, Any]:
    """The texts of a node in English, in the form of nodeDefs.json."""
    inputs = node.INPUT_TYPES()
    return {
        "display_name": title,
        "description": node.DESCRIPTION,
        "inputs": {name: {"name": name, "tooltip": options["tooltip"]} for name, (_, options) in {**inputs["required"], **inputs.get("optional", {})}.items()},
        "outputs": {str(i): {"name": name, "tooltip": tooltip} for i, (name, tooltip) in enumerate(zip(node.RETURN_NAMES, node.OUTPUT_TOOLTIPS, strict=True))},
    }


def test_the_chinese_nodes_are_the_declared_ones_with_every_input_and_output(pack: ModuleType) -> None:
    english = dict(flat({name: declared(node, pack.NODE_DISPLAY_NAME_MAPPINGS[name]) for name, node in pack.NODE_CLASS_MAPPINGS.items()}))
    chinese = dict(flat(read("zh", "nodeDefs.json")))
    assert set(chinese) == set(english)
    assert [key for key, text in chinese.items() if not is_chinese(text) or text == english[key]] == []


def test_inputs_of_one_node_do_not_share_a_name() -> None:
    for node, texts in read("zh", "nodeDefs.json").items():
        for part in ("inputs", "outputs"):
            names = [entry["name"] for entry in texts[part].values()]
            assert len(set(names)) == len(names), f"{node}: {names}"


def test_choices_that_a_tooltip_names_are_named_in_chinese_too(nodes: dict[str, Any]) -> None:
    """A list's values are never translated, so a tooltip that explains one has it letter for letter."""
    chinese = read("zh", "nodeDefs.json")
    for node_id, node in nodes.items():
        inputs = node.INPUT_TYPES()
        for name, (kind, options) in {**inputs["required"], **inputs.get("optional", {})}.items():
            for choice in kind if isinstance(kind, list) else ():
                if re.search(rf"\b{re.escape(choice)}\b", options["tooltip"]):
                    assert choice in chinese[node_id]["inputs"][name]["tooltip"], f"{node_id}.{name}: {choice}"


# The settings


def declared_settings() -> dict[str, Any]:
    """The settings of the page in the form of settings.json."""
    source = SETTINGS.read_text(encoding="utf-8")
    assert re.search(r'const SETTING = "LeanVideo\.Monitor\."', source)
    found: dict[str, Any] = {}
    for name, rest in re.findall(r"id: `\$\{SETTING\}(\w+)`,(.*?)\n  \}", source, re.DOTALL):
        texts = {what: re.search(rf'\n    {what}: "(.*)",', rest) for what in ("name", "tooltip")}
        entry: dict[str, Any] = {what: match[1] for what, match in texts.items() if match}
        options = re.search(r"\n    options: (\[.*\]),", rest)
        if options:
            entry["options"] = {option: option for option in json.loads(options[1])}
        found[f"LeanVideo_Monitor_{name}"] = entry
    assert len(found) == source.count("id: `${SETTING}")
    return found


def test_the_settings_in_english_are_those_of_the_page() -> None:
    """The page needs them itself: hosts of 2024 read no settings.json, and newer ones show a tooltip only where the setting has one."""
    assert read("en", "settings.json") == declared_settings()


def test_the_settings_in_chinese_are_those_of_the_page() -> None:
    english, chinese = dict(flat(declared_settings())), dict(flat(read("zh", "settings.json")))
    assert set(chinese) == set(english)
    units = {key for key in english if ".options." in key and key.endswith("iB")}
    assert [key for key, text in chinese.items() if key not in units and not is_chinese(text)] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_categories_of_settings_are_those_of_the_page(language: str) -> None:
    shown = {name for first, second in re.findall(r'category: \["([^"]+)", "([^"]+)", "[^"]+"\]', SETTINGS.read_text(encoding="utf-8")) for name in (first, second)}
    assert set(read(language, "main.json")["settingsCategories"]) == shown


# What reads them


@pytest.mark.parametrize("file", [file for language in LANGUAGES for file in sorted((LOCALES / language).glob("*.json"))], ids=lambda file: f"{file.parent.name}/{file.name}")
def test_the_page_takes_no_text_for_a_pattern(file: Path) -> None:
    """Braces, @ and | mean something to the page's translator; the panel fills in its own braces."""
    texts = read(file.parent.name, file.name)
    texts.pop("leanVideo", None)
    assert {key: text for key, text in flat(texts) if re.search(r"[{}@|]", text)} == {}
