"""Leaves out the parts of a multimodal model that text never reaches: its towers and the projections behind them."""

from __future__ import annotations

from transformers import PreTrainedConfig, PreTrainedModel


def leave_out_towers(model: PreTrainedModel) -> dict[str, tuple[str, ...]]:
    """Removes each module with weights that is neither the text model, nor on the way to it, nor the head.

    A model whose configuration has no part beside the text is left unchanged. So is a model that does not tell its
    decoder apart.

    Args:
        model: a model of any kind, on the meta device.

    Returns:
        The paths of the removed modules, each with the names of its tensors in the state dict. The attributes of the
        model are None from then on.
    """
    if not _is_multimodal(model.config):
        return {}
    paths = {module: path for path, module in model.named_modules()}
    decoder = paths.get(model.get_decoder())  # type: ignore[no-untyped-call]
    head = paths.get(model.get_output_embeddings())  # type: ignore[no-untyped-call]
    removed: dict[str, tuple[str, ...]] = {}
    owner = ""
    for name in decoder.split(".") if decoder else ():
        module = model.get_submodule(owner)
        for child, tower in list(module.named_children()):
            path = _joined(owner, child)
            tensors = tuple(f"{path}.{tensor}" for tensor in tower.state_dict())
            if tensors and child != name and head != path and not (head or "").startswith(f"{path}."):
                removed[path] = tensors
                setattr(module, child, None)
        owner = _joined(owner, name)
    return removed


def _joined(owner: str, name: str) -> str:
    return f"{owner}.{name}" if owner else name


def _is_multimodal(config: PreTrainedConfig) -> bool:
    text = config.get_text_config(decoder=True)
    parts = [getattr(config, name, None) for name in config.sub_configs]
    return any(isinstance(part, PreTrainedConfig) and part is not text for part in parts)
