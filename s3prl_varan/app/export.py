"""From an experiment folder to files others can use.

The adapters alone, or a plain upstream with the adapters folded in.
"""

from pathlib import Path

from s3prl_varan.errors import UserError


def export_experiment(
    place: str,
    out: str,
    *,
    fmt: str = "auto",
    merge: bool = False,
    base_ckpt: str | None = None,
    upstream_ckpt: str | None = None,
) -> Path:
    """Write what a LoRA run learned of the upstream.

    place: experiment folder or checkpoint. out: folder, or file for `merge`. upstream_ckpt: where
    the upstream's own checkpoint is now, if it was moved. UserError where the run had no LoRA.
    """
    from s3prl_varan.training.checkpoint import find_checkpoint, load_checkpoint
    from s3prl_varan.tuning.adapters import check_upstream, write_adapter
    from s3prl_varan.tuning.lora import apply_lora, load_lora_state_dict
    from s3prl_varan.tuning.merging import export_merged
    from s3prl_varan.tuning.options import LoraOptions
    from s3prl_varan.upstream.wrapper import build_upstream

    source = find_checkpoint(place, resume=False)
    payload = load_checkpoint(source)
    if payload.get("lora") is None:
        raise UserError(
            f"{source}: this run trained no LoRA adapters (--lora), there is nothing to export."
        )
    args = payload["Args"]
    ckpt = upstream_ckpt or args.get("upstream_ckpt")
    upstream = build_upstream(
        args["upstream"],
        ckpt,
        args.get("upstream_model_config"),
        args.get("upstream_feature_selection") or "hidden_states",
    )
    check_upstream(payload["upstream"], upstream, str(source))
    apply_lora(upstream, LoraOptions(**payload["lora"]["options"]))
    load_lora_state_dict(upstream, payload["lora"]["state"])
    if merge:
        return export_merged(upstream, base_ckpt or ckpt, out)
    return write_adapter(out, upstream, payload["upstream"], fmt=fmt)
