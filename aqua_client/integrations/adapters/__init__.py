"""Hundreds of LoRA adapters of one model (peft), of which some are in it and the rest is parked.

    import peft

    base = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
    lora = peft.LoraConfig(target_modules=["0", "2"], init_lora_weights=False)
    pool = AdapterPool(peft.get_peft_model(base, lora, "first"), resident=2)
    for name in ("second", "third", "fourth"):
        pool.add(name, lora)  # or the directory of a saved one
    with pool.using("first") as model:  # its turn: others wait
        print(model(torch.randn(1, 64)), pool.resident)

`adapter` says what an adapter is made of, `pool` which of them stay. Needs peft (the extra
`adapters`); adapters of other kinds than LoRA, and those with `modules_to_save`, are refused.
"""

from aqua_client.integrations.adapters.pool import AdapterPool

__all__ = ["AdapterPool"]
