"""The README of an exported folder: code that makes the inputs and runs the graph, without this library."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from typing import Any

RUN = {
    "onnx": """session = onnxruntime.InferenceSession(folder / "{file}")
answer = session.run(None, inputs)[0]""",
    "torch": """program = torch.export.load(folder / "{file}").module()
with torch.no_grad():
    answer = program(*(torch.as_tensor(inputs[name]) for name in {names})).numpy()""",
}
TEXT = """# A fusion model as {kind}

`{file}` answers by itself: it needs {runtime}, and none of the code that trained it. `export.json` has in a form for
programs what is written here.

## Run it

With `pip install {packages}`:

```python
{code}
```

## Inputs

All inputs have one row per sample; the number of rows is free, and so is every other dimension with a name.

| input | shape | dtype |
| --- | --- | --- |
{table}
{notes}
## Output

`{output}`, {shape} float32: {meaning}

{made}
"""


def readme_of(facts: Mapping[str, Any]) -> str:
    """The text.

    Args:
        facts: what is written to `export.json`.
    """
    is_onnx = facts["format"] == "onnx"
    rows = "\n".join(
        f"| `{each['name']}` | ({', '.join(map(str, each['shape']))}) | {each['dtype']} |"
        for each in facts["inputs"]
    )
    classes = ", ".join(map(str, facts["classes"]))
    meaning = {
        "single_label_classification": f"the calibrated probability of each class, in this order: {classes}.",
        "multi_label_classification": f"the calibrated probability of each label by itself, in this order: {classes}.",
        "regression": f"the predictions, in this order: {classes}.",
    }[facts["problem_type"]]
    made = ", ".join(f"{name} {version}" for name, version in facts["made_with"].items())
    code = _code(facts)
    return TEXT.format(
        packages=_packages(code),
        kind="ONNX" if is_onnx else "a torch.export program",
        file=facts["file"],
        runtime="ONNX Runtime" if is_onnx else "PyTorch",
        code=code,
        table=rows,
        notes=_notes(facts),
        output=facts["output"]["name"],
        shape=f"(batch, {len(facts['classes'])})",
        meaning=meaning,
        made=f"Made with {made}. On trial rows its answers were at most "
        f"{facts['max_difference_to_the_model']:.1e} from those of the model.",
    )


def _packages(code: str) -> str:
    """The packages that the code imports."""
    modules = re.findall(r"^(?:import|from) (\w+)", code, flags=re.MULTILINE)
    names = {"PIL": "pillow"}
    chosen = {names.get(module, module) for module in modules if module not in sys.stdlib_module_names}
    return " ".join(sorted(chosen))


def _notes(facts: Mapping[str, Any]) -> str:
    lines = []
    if len(facts["modalities"]) > 1:
        lines.append(
            "`NAME.present` says which rows have this modality. Where it is false, the other inputs of the modality "
            "may hold any values, such as zeros: the answer is that from the other modalities."
        )
    for name, facts_of_modality in facts["modalities"].items():
        if facts_of_modality["rows_of_one_length"] and any(
            isinstance(size, str)
            for each in facts["inputs"]
            if each["modality"] == name
            for size in each["shape"][1:]
        ):
            lines.append(
                f"Padding would change what the encoder of `{name}` sees: all rows of a batch must have one length, or "
                "be run one by one."
            )
    return "".join(f"\n{line}\n" for line in lines)


def _code(facts: Mapping[str, Any]) -> str:
    imports = {"import numpy as np", "from pathlib import Path"}
    imports.add("import onnxruntime" if facts["format"] == "onnx" else "import torch")
    body = ['folder = Path(".")  # where this file is', "inputs = {}"]
    for name, about in facts["modalities"].items():
        keys = [each for each in facts["inputs"] if each["modality"] == name and each["key"] != "present"]
        lines, needed = _reading(name, about, keys)
        imports |= needed
        body += ["", f"# {name}", *lines]
    masks = [each["name"] for each in facts["inputs"] if each["key"] == "present"]
    if masks:
        body += ["", "# which rows have which modality", f"for name in {json.dumps(masks)}:"]
        body += ["    inputs[name] = np.array([True])"]
    names = json.dumps([each["name"] for each in facts["inputs"]])
    body += ["", RUN[facts["format"]].format(file=facts["file"], names=names)]
    classes = json.dumps([str(each) for each in facts["classes"]], ensure_ascii=False)
    body += [f"classes = {classes}", "print(dict(zip(classes, answer[0].tolist())))"]
    plain = sorted(line for line in imports if line.startswith("import"))
    return "\n".join([*plain, *sorted(imports - set(plain)), "", *body])


def _reading(
    name: str, about: Mapping[str, Any], keys: list[Mapping[str, Any]]
) -> tuple[list[str], set[str]]:
    """Code that makes the inputs of one row, and the imports that it needs."""
    kind, prefix = about.get("kind"), f'"{name}." + key'
    take = [
        f"for key in {json.dumps([each['key'] for each in keys])}:",
        f"    inputs[{prefix}] = np.asarray(made[key])",
    ]
    if kind == "image_processor" and len(keys[0]["shape"]) == 4:
        mode = "L" if len(about.get("image_mean") or (0, 0, 0)) == 1 else "RGB"
        return (
            [
                f'processor = AutoImageProcessor.from_pretrained(folder / "{name}")',
                f'made = processor(Image.open("{name}.png").convert("{mode}"), return_tensors="np")',
                *take,
            ],
            {"from PIL import Image", "from transformers import AutoImageProcessor"},
        )
    if kind == "feature_extractor":
        rate = about.get("sampling_rate", 16_000)
        with_mask = (
            ", return_attention_mask=True" if any(each["key"] == "attention_mask" for each in keys) else ""
        )
        return (
            [
                f'processor = AutoFeatureExtractor.from_pretrained(folder / "{name}")',
                f'samples, rate = soundfile.read("{name}.wav", dtype="float32")  # mono, {rate} samples a second',
                f'made = processor(samples, sampling_rate=rate, return_tensors="np"{with_mask})',
                *take,
            ],
            {"import soundfile", "from transformers import AutoFeatureExtractor"},
        )
    if kind == "tokenizer":
        padding = "padding=True"
        if all(isinstance(size, int) for size in keys[0]["shape"][1:]):
            padding = 'padding="max_length", truncation=True'
        elif about.get("max_length") is not None:
            # As for the model, whose encoder has no positions beyond.
            padding = "padding=True, truncation=True"
        return (
            [
                f'tokenizer = AutoTokenizer.from_pretrained(folder / "{name}")',
                f'made = tokenizer(["a text"], {padding}, return_tensors="np")',
                *take,
            ],
            {"from transformers import AutoTokenizer"},
        )
    if kind == "array_processor":
        shape = ", ".join(str(size if isinstance(size, int) else 8) for size in keys[0]["shape"][1:])
        lines = [
            f"row = np.zeros(({shape},))  # your numbers" if shape else "row = np.zeros(())",
            f'scale = json.loads((folder / "{name}" / "array_processor.json").read_text())',
            'made = {"values": ((row - scale["mean"]) / scale["std"])[None].astype(np.float32)}',
        ]
        if len(keys) > 1:
            lines.append('made["attention_mask"] = np.ones(made["values"].shape[:2], dtype=np.int64)')
        return [*lines, *take], {"import json"}
    lines = []
    for each in keys:
        sizes = [size if isinstance(size, int) else 8 for size in each["shape"][1:]]
        values = f"np.zeros({(1, *sizes)}, dtype=np.{each['dtype']})"
        lines.append(f'inputs["{each["name"]}"] = {values}  # processed as for training')
    return lines, set()
