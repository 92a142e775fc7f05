"""Adapters (LoRA and its relatives), merged into their base through peft: what is scored is one plain model.

Merged in float32, whatever precision scoring runs in, and held to peft's own unmerged forward: an adapter that peft cannot
merge exactly is refused. Cost: the base is loaded in float32, and once more for its dtypes where scoring runs in another one.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import torch

from evalengine.checkpoints import ADAPTER_CONFIG, COPY, Checkpoint, adapter_file
from evalengine.checkpoints.pretrained import Loaded, Pretrained
from evalengine.checkpoints.weights import headers, unpickled
from evalengine.errors import UserError
from evalengine.untrusted import printable, read_json, reason

TOLERANCE = 1e-3  # of logits, merged against unmerged
PROBE = 16  # tokens


def merged(pretrained: Pretrained, checkpoint: Checkpoint) -> Loaded:
    """The base of an adapter with the adapter merged into it, on the CPU. Raises UserError."""
    if importlib.util.find_spec("peft") is None:
        raise UserError(f"{checkpoint.name} is an adapter, which needs peft: pip install 'evalengine[peft]'")
    check(checkpoint)
    file = adapter_file(checkpoint.path, pretrained.allow_pickle)
    safe = file.suffix == ".safetensors"
    shapes = {k: tuple(t.shape) for k, t in (headers([file]) if safe else unpickled([file])).items()}
    kept = dtypes(pretrained.read(checkpoint).model) if pretrained.dtype != torch.float32 else {}
    loaded = pretrained._replace(dtype=torch.float32).read(checkpoint)
    try:
        with warnings.catch_warnings(action="ignore"):  # what they warn of is refused below
            before, whole = merge(loaded.model, shapes, checkpoint)
        after = logits(whole)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{checkpoint.name} cannot be merged into its base {checkpoint.base}: {reason(error, 300)}"
        ) from None
    if not torch.allclose(before, after, atol=TOLERANCE, rtol=0):
        raise UserError(
            f"{checkpoint.name} cannot be merged exactly: its logits differ by {(before - after).abs().max():.2g}"
            " from those of the unmerged adapter; it is not scored"
        )
    cast(whole, kept)
    return loaded._replace(model=whole, names=None)


def merge(model: Any, shapes: dict[str, tuple[int, ...]], checkpoint: Checkpoint) -> tuple[torch.Tensor, Any]:
    """Logits of the unmerged adapter, and the merged model."""
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(str(checkpoint.path))
    if config.is_prompt_learning or getattr(config, "is_adaption_prompt", False):
        raise UserError(
            f"{checkpoint.name} is a prompt adapter ({printable(str(config.peft_type.value))}): it adds tokens to the"
            " input, cannot be merged into weights, and is not scored"
        )
    resize(model, shapes, checkpoint)
    renamed = getattr(model, "_checkpoint_conversion_mapping", {})
    unmerged = PeftModel.from_pretrained(model, checkpoint.path, torch_device="cpu").eval()
    # peft leaves out what does not fit, and only the second call says so.
    again = unmerged.load_adapter(checkpoint.path, "default", torch_device="cpu", key_mapping=renamed)
    check_complete(unmerged, again, set(shapes), checkpoint)
    return logits(unmerged), unmerged.merge_and_unload(safe_merge=True)


def check(checkpoint: Checkpoint) -> None:
    """Refuses what peft should not be given."""
    config = read_json(checkpoint.path / ADAPTER_CONFIG, COPY, constants=True)
    if config.get("megatron_config"):
        # peft imports the module that it names; that of auto_mapping only its AutoPeftModel does, which is not called
        raise UserError(f"{checkpoint.name} names code of its own (megatron_config): it is not loaded")
    if checkpoint.config.get("quantization_config"):
        raise UserError(
            f"{checkpoint.name} has a quantised base ({checkpoint.base}), into which nothing can be merged exactly: give the"
            " base in full precision with --base"
        )


def resize(model: Any, shapes: dict[str, tuple[int, ...]], checkpoint: Checkpoint) -> None:
    """Gives the base as many embeddings as the adapter was saved with, where tokens were added before training."""
    inside, outside = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    rows = []
    for module in (inside, outside):
        name = f"base_model.model.{names[id(module)]}"
        shape = shapes.get(f"{name}.weight") or shapes.get(f"{name}.base_layer.weight")
        rows.append(shape[0] if shape else None)
    wanted = set(rows) - {None}
    if not wanted or wanted == {inside.weight.shape[0]}:
        return
    if len(wanted) > 1 or (None in rows and inside.weight is not outside.weight):
        raise UserError(
            f"{checkpoint.name} has other numbers of tokens in its embedding and its output layer than its base: save it"
            " with save_embedding_layers=True"
        )
    model.resize_token_embeddings(rows[0] or rows[1], mean_resizing=False)


def check_complete(model: Any, result: Any, stored: set[str], checkpoint: Checkpoint) -> None:
    """Refuses an adapter of which peft left out a tensor, or for which it kept one that it made itself."""
    own = {name for name, _ in model.named_parameters() if ".modules_to_save.default." in name}
    own |= {name for name, _ in model.named_parameters() if name.endswith(".trainable_tokens_delta.default")}
    lacking = {name.replace(".modules_to_save", "").replace(".default", "") for name in own} - stored
    lacking |= set(result.missing_keys)
    if lacking:
        raise UserError(
            f"{checkpoint.name} lacks {printable(sorted(lacking)[0][:120])}, which its {ADAPTER_CONFIG} asks for: {COPY}"
        )
    # What is resized is saved once more, under the names of peft's own modules.
    extra = [
        name
        for name in result.unexpected_keys
        if not (".modules_to_save." in name and name.replace(".modules_to_save", "") in stored)
    ]
    if extra:
        raise UserError(
            f"{checkpoint.name} does not fit its base {checkpoint.base}, which has no place for"
            f" {printable(extra[0][:120])}: give the base that it was trained on with --base"
        )


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(rows, (1, PROBE), generator=torch.Generator().manual_seed(0))
    return torch.as_tensor(model(input_ids=ids, use_cache=False).logits)


def dtypes(model: Any) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def cast(model: Any, kept: dict[str, torch.dtype]) -> None:
    """Every parameter and buffer into the dtype that transformers gives it in the base."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor.data = tensor.data.to(kept.get(name, tensor.dtype))
