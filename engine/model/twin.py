"""A model's small twin: the same architecture and configuration, narrow, with random weights, in float32 on the CPU.

Whether a fast path computes what a model computes does not depend on its weights, so it can be tried on weights that make
every difference large. The twin keeps whatever decides the arithmetic (layer types, windows, rotary factors); only widths, the
vocabulary, the number of experts and that of equal layers shrink, and only where the module can still be built.

Cost: about 10 ms a layer that it keeps.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evalengine.checkpoints.pretrained import attention_of, made_buffers, text_config
from evalengine.model.last_layer import decoder_layers

VOCABULARY = 320
WIDTH = 64
HEAD = 32  # channels of a head, where nothing in the configuration (rotary factors, say) asks for more
GAIN = 1.5  # of a matrix: activations grow a little, logits differ by nats
LAYERS = 4  # at least, where a model has so many
LARGEST = 200_000_000  # parameters: a twin that does not shrink below is not made


def make(config: Any, trust_remote_code: bool = False, model_class: Any = None) -> Any:
    """The twin of a configuration. Raises what building it raises, ValueError where it stays too large.

    `model_class` is that of a model which is there already: code of its own is then not looked for again.
    """
    from transformers import AutoModelForCausalLM

    def module(small: Any) -> Any:
        given = {"dtype": torch.float32, **attention_of(small)}
        if model_class is not None:
            model = model_class._from_config(small, **given)
        else:
            model = AutoModelForCausalLM.from_config(small, trust_remote_code=trust_remote_code, **given)
        return model.requires_grad_(False).eval()

    failed: Exception | None = None
    narrowest, square = partial(_narrow, head=HEAD), partial(_narrow, square=True)
    for shrink in (narrowest, _narrow, square, _thin, _few_tokens):
        try:
            small = shrink(copy.deepcopy(config))
            with torch.device("meta"):
                shape = module(small)
                small = _few_layers(small, shape, module)
                shape = module(small)
            size = sum(p.numel() for p in shape.parameters())
            if size > LARGEST:
                raise ValueError(f"its small copy has {size / 1e6:.0f}M parameters")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = module(small)
                _randomise(model)
                copy.deepcopy(model)(input_ids=torch.zeros(1, 3, dtype=torch.long))  # a forward may change it
        except Exception as error:  # whatever a model's own code makes of such widths
            failed = failed or error
            continue
        return model
    assert failed is not None
    raise failed


def lengths(config: Any, longest: int) -> list[int]:
    """Every whole number in a configuration that may be a length at which its arithmetic changes: 8 to longest - 1, sorted."""
    return sorted({n for n in _numbers(config.to_dict()) if 8 <= n < longest})


def _few_layers(config: Any, model: nn.Module, build: Callable[[Any], nn.Module]) -> Any:
    """A configuration of the first layers alone, where these are of all kinds that there are, of each at least two or all, and
    the last is of the kind of the model's last; else the configuration itself.

    Of transformers' own models alone, since other code may tell layers apart by their number, and of layers without tensors that
    are no weights, whose numbers may differ.
    """
    kinds, layers = _kinds(model), decoder_layers(model)
    own = type(model).__module__.startswith("transformers.models.")
    if not own or layers is None or len(kinds) <= LAYERS or made_buffers(layers):
        return config
    wanted = Counter({kind: min(count, 2) for kind, count in Counter(kinds).items()})
    for count in range(LAYERS, len(kinds)):
        if kinds[count - 1] == kinds[-1] and wanted <= Counter(kinds[:count]):
            break
    else:
        return config
    try:
        few = copy.deepcopy(config)
        text = text_config(few)
        for name, value in _by_layer(text).items():
            setattr(text, name, value[:count])
        text.num_hidden_layers = count
        return few if _kinds(build(few)) == kinds[:count] else config
    except Exception:  # whatever a configuration makes of another number of layers
        return config


def _kinds(model: Any) -> list[str]:
    """What each decoder layer is: its modules, their numbers and the shapes of their tensors, but for its own number; and what
    the configuration says of it in lists."""
    layers = list(decoder_layers(model) or [])
    plain = (bool, int, float, str, tuple, type(None))
    about: list[dict[str, Any]] = []
    for layer in layers:
        found: dict[str, Any] = {name: list(tensor.shape) for name, tensor in layer.state_dict().items()}
        for path, module in layer.named_modules():
            found[path] = type(module)
            found |= {f"{path}:{key}": v for key, v in vars(module).items() if isinstance(v, plain)}
        about.append(found)
    numbers = {key for key in (about or [{}])[0] if all(one.get(key) == i for i, one in enumerate(about))}
    lists = _by_layer(text_config(model.config))
    return [
        repr([(k, v) for k, v in one.items() if k not in numbers] + [values[i] for values in lists.values()])
        for i, one in enumerate(about)
    ]


def _by_layer(config: Any) -> dict[str, list[Any]]:
    """The lists of a configuration that have a value for each layer."""
    depth = config.num_hidden_layers
    return {k: v for k, v in config.to_dict().items() if isinstance(v, list) and len(v) == depth}


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _numbers(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _numbers(inner)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


def _few_tokens(config: Any) -> Any:
    for part in _parts(config):
        part.quantization_config = None
        # transformers' choice, not that of the module which has this configuration
        part._attn_implementation = None
        for name in ("vocab_size", "vocab_size_per_layer_input"):
            if (_whole(part, name) or 0) > VOCABULARY:
                setattr(part, name, VOCABULARY)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if (_whole(part, name) or 0) >= VOCABULARY:
                setattr(part, name, 0)
    return config


def _thin(config: Any) -> Any:
    """Narrow feed-forward blocks, few experts, short towers beside the text model."""
    _few_tokens(config)
    text = text_config(config)
    for part in _parts(config):
        for name in dir(part):
            is_width = name in ("ffn_dim", "n_inner", "ffn_hidden_size") or name.endswith("intermediate_size")
            if is_width and (_whole(part, name) or 0) > WIDTH:
                setattr(part, name, WIDTH)
        for name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"):
            experts, groups = _whole(part, name), _whole(part, "n_group") or 1
            chosen = _whole(part, "num_experts_per_tok") or _whole(part, "moe_topk") or 1
            if experts:
                setattr(part, name, min(experts, max(8, 4 * groups, 2 * chosen)))
        if part is not text and part is not config:
            for name in ("num_hidden_layers", "num_layers", "depth", "encoder_layers"):
                if _whole(part, name):
                    setattr(part, name, min(getattr(part, name), 2))
    return config


def _narrow(config: Any, head: int = 1 << 31, square: bool = False) -> Any:
    """Fewer heads, still grouped if they were, of at most `head` channels; a small hidden size, or heads x head width."""
    _thin(config)
    text = text_config(config)
    heads, width = text.num_attention_heads, text.hidden_size
    keys = _whole(text, "num_key_value_heads")
    if heads % (keys or heads):
        raise ValueError("heads differ from layer to layer")
    few = min(keys or heads, 2)
    many = few * min(heads // (keys or heads), 4 if few == 1 else 2)
    try:
        own = text.head_dim
    except AttributeError:
        own = None
    except Exception:  # one for each kind of layer
        own = WIDTH
    if "head_dim" in text.to_dict() and (own or 0) > head:
        text.head_dim = own = head
    if own is None or square:
        narrow = many * min(own or width // heads, head)
    else:
        narrow = min(width, WIDTH)
    for name in ("word_embed_proj_dim", "embedding_size"):
        if _whole(text, name) == width:
            setattr(text, name, narrow)
    text.hidden_size = narrow
    text.num_attention_heads = many
    if keys:
        text.num_key_value_heads = few
    return config


def _whole(config: Any, name: str) -> int | None:
    """A whole number of a configuration; None where it has none of that name, or one for each layer."""
    try:
        value = getattr(config, name, None)
    except Exception:
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _parts(config: Any) -> list[Any]:
    """A configuration and those nested in it."""
    found = [config]
    for name in getattr(type(config), "sub_configs", {}):
        inner = getattr(config, name, None)
        if inner is not None and hasattr(inner, "to_dict"):
            found += _parts(inner)
    return found


def _randomise(model: nn.Module) -> None:
    """Weights under which every part of the model shows in its logits; what transformers draws specially keeps its range."""
    generator = torch.Generator().manual_seed(1)

    def normal(tensor: Tensor, spread: float) -> Tensor:
        return torch.randn(tensor.shape, generator=generator) * spread

    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        if id(parameter) in embeddings:
            parameter.copy_(normal(parameter, 1.0))
        elif parameter.dim() >= 2:
            parameter.copy_(normal(parameter, GAIN / max(parameter.shape[-1], 1) ** 0.5))
        else:
            parameter.add_(normal(parameter, 0.1))
