"""The model a recipe trains: device, base weights in the recipe's precision, the adapter's configuration and layout.

Loads base models from their folders; nothing here touches a network.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    TorchAoConfig,
)
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from llmops.errors import BadRequest, ConfigError, CouldNotRun, InvalidEvidence
from llmops.registry.adapters import WEIGHTS_FILE
from llmops.registry.bases import Base
from llmops.schema import JsonDict
from llmops.train.documents import IN_DOCUMENTS, can_attend_in_documents
from llmops.train.recipe import Lora, Recipe, Reward

Shapes = dict[str, tuple[int, ...]]
HEAD = "score"
"""What transformers calls the layer that makes a reward from the last hidden state."""
WHOLE = ("lm_head", HEAD)  # never held in few bits: the output layer, and the head that is trained whole
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

# Attention on a CPU in bfloat16, forward and backward of one layer, 1 thread, AVX-512 bf16, torch 2.13, milliseconds:
#   8x96 tokens: eager 7, sdpa 20;  8x160: 22, 39;  8x256: 55, 62;  4x512: 116, 104;  2x1024: 308, 131
# In fp32 (AVX2) sdpa is never slower: 1.0 of eager's time for a step of 8x160, 0.9 of 4x512, 0.7 of 2x1024.
# Eager keeps the square of the length in memory, so it is only used where it is also the faster one.
EAGER_UP_TO_TOKENS = 384


def pick_device(wanted: str) -> str:
    """`cpu` or `cuda` for a recipe's `device`; of several CUDA devices the first is used unless a launcher chose.

    Raises:
        ConfigError: CUDA is asked for and there is none.
    """
    if wanted == "cpu":
        return "cpu"
    # Several visible devices would mean DataParallel, which TRL refuses; CUDA reads the variable when first asked.
    ours = "WORLD_SIZE" not in os.environ and "CUDA_VISIBLE_DEVICES" not in os.environ
    if ours:
        os.environ["CUDA_VISIBLE_DEVICES"] = "0"
    if torch.cuda.is_available():
        return "cuda"
    if ours:
        del os.environ["CUDA_VISIBLE_DEVICES"]
    if wanted == "cuda":
        raise ConfigError("device: cuda is asked for and no CUDA device is there; set device: auto")
    return "cpu"


def pick_precision(recipe: Recipe, device: str) -> str:
    """`bf16` or `fp32` for a recipe's `precision` on a device: the one it multiplies faster in.

    A CPU without bfloat16 instructions emulates them: 9 GFLOP/s where fp32 makes 60 (one AVX2 core, torch 2.13).
    """
    if recipe.precision != "auto":
        return recipe.precision
    if recipe.quantization == "nf4":
        return "bf16"
    if device == "cpu":
        able = torch.cpu.get_capabilities()
        fast = any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    else:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if fast else "fp32"


def load_tokenizer(base: Base) -> Any:
    """The base model's fast tokenizer."""
    return AutoTokenizer.from_pretrained(base.path, local_files_only=True)


def load_base(base: Base, recipe: Recipe, device: str) -> Any:
    """The base model for training, on `device`, in the recipe's precision, held in 4 or 8 bits if it says so.

    For method reward it has a head of one number, whose first weights are random: set the seed before.

    Raises:
        CouldNotRun: the weights do not load.
    """
    load = load_with_head if isinstance(recipe.method, Reward) else AutoModelForCausalLM.from_pretrained
    try:
        model = load(
            base.path,
            dtype=DTYPES[recipe.precision],
            attn_implementation=attention_of(base, recipe, device),
            quantization_config=_QUANTIZE[recipe.quantization](),
            device_map=None if recipe.quantization == "none" else {"": device},
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CouldNotRun(f"base model {base.ref}: does not load ({error}); check its files") from error
    model.config.use_cache = False
    return model


def attention_of(base: Base, recipe: Recipe, device: str) -> str:
    """The attention that is fastest for a recipe's rows on a device, by its name in transformers."""
    if recipe.batch.packing:
        config = AutoConfig.from_pretrained(base.path, local_files_only=True)
        return IN_DOCUMENTS if can_attend_in_documents(config) else "sdpa"
    short = recipe.max_tokens <= EAGER_UP_TO_TOKENS
    return "eager" if device == "cpu" and recipe.precision == "bf16" and short else "sdpa"


def require_means(recipe: Recipe, device: str) -> None:
    """Refuse what this machine or its installation cannot do: the precision, the quantisation, the trackers.

    Raises:
        ConfigError: says what to install or to set.
    """
    if recipe.precision == "fp16" and device == "cpu":
        raise ConfigError("precision: fp16 needs a CUDA device, and training is on the CPU; set bf16 or fp32")
    for name, library in (("nf4", "bitsandbytes==0.50.2"), ("int8", "torchao==0.18.0")):
        if recipe.quantization == name and find_spec(library.partition("==")[0]) is None:
            raise ConfigError(
                f"quantization: {name} needs {library.partition('==')[0]}, which is not installed; "
                f"pip install {library}, or set none"
            )
    for name in recipe.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ConfigError(f"report_to: {name} is no tracker of transformers'; it knows {known}")
        if name not in get_available_reporting_integrations():
            raise ConfigError(f"report_to: {name} is not installed; pip install {name}, or leave it out")


def _eight_bits() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=list(WHOLE))


def _four_bits() -> Any:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=list(WHOLE),
    )


_QUANTIZE: dict[str, Callable[[], Any]] = {"none": lambda: None, "nf4": _four_bits, "int8": _eight_bits}


def load_with_head(path: Path, **settings: Any) -> Any:
    """The model in a folder with a head of one number instead of its output layer; arguments as for transformers."""
    from trl.trainer.reward_trainer import suppress_seqcls_warning

    with suppress_seqcls_warning():  # that a head is new and an output layer left out is what is wanted
        return AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, **settings)


def lora_config(lora: Lora) -> LoraConfig:
    """PEFT's configuration of the adapter."""
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules
        if isinstance(lora.target_modules, str)
        else list(lora.target_modules),
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        bias="none",
        task_type="CAUSAL_LM",
    )


def reward_config(lora: Lora) -> LoraConfig:
    """PEFT's configuration of a reward adapter: its head is trained whole and saved with it."""
    config = lora_config(lora)
    config.task_type, config.modules_to_save = "SEQ_CLS", [HEAD]
    return config


def adapter_config(lora: Lora, parent: Path | None) -> LoraConfig:
    """PEFT's configuration of the adapter to train: that of the folder it continues, or the recipe's shape."""
    if parent is None:
        return lora_config(lora)
    config = read_lora_config(parent)
    config.inference_mode = False
    # The first weights are the parent's; what they once began with, and where its base lay, do not matter any more.
    config.init_lora_weights = True
    config.base_model_name_or_path = config.revision = None
    return config


def load_adapter_weights(model: Any, folder: Path) -> None:
    """Put the weights of an adapter's folder into the adapter of `model`, in the type that the model's have.

    Raises:
        InvalidEvidence: the folder's tensors are not those of the model's adapter.
    """
    tensors = load_file(folder / WEIGHTS_FILE)
    try:
        set_peft_model_state_dict(model, tensors)
    except RuntimeError as error:
        raise InvalidEvidence(f"{folder}: its weights do not fit ({error}); restore it") from error
    held = get_peft_model_state_dict(model, save_embedding_layers=False)
    # PEFT ignores tensors it has no place for, and leaves out those that are not there.
    if held.keys() != tensors.keys() or any(
        not torch.equal(held[name].cpu().float(), tensor.float()) for name, tensor in tensors.items()
    ):
        raise InvalidEvidence(f"{folder}: its tensors are not those its configuration asks for; restore it")


def adapter_on_meta(base: Base, config: LoraConfig) -> Any:
    """PEFT's model of an adapter of this configuration on this base, with layers and without any weights.

    Raises:
        BadRequest: the configuration does not fit the base (no such layers), in PEFT's words.
    """
    settings = AutoConfig.from_pretrained(base.path, local_files_only=True)
    kind = AutoModelForCausalLM
    if config.task_type == "SEQ_CLS":
        settings.num_labels, kind = 1, AutoModelForSequenceClassification
    with torch.device("meta"):
        model = kind.from_config(settings)
    try:
        with torch.device("meta"):
            return get_peft_model(model, config)
    except (ValueError, TypeError) as error:
        raise BadRequest(
            f"adapter on {base.ref}: does not fit ({error}); correct lora.target_modules"
        ) from error


def adapter_shapes(base: Base, config: LoraConfig) -> Shapes:
    """Names and shapes of the tensors an adapter of this configuration has on this base, without loading weights.

    Raises:
        BadRequest: the configuration does not fit the base (no such layers), in PEFT's words.
    """
    state = get_peft_model_state_dict(adapter_on_meta(base, config), save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def planned_config(recipe: Recipe, parent: Path | None) -> LoraConfig:
    """PEFT's configuration of the adapter that a recipe trains."""
    return (
        reward_config(recipe.lora)
        if isinstance(recipe.method, Reward)
        else adapter_config(recipe.lora, parent)
    )


def plain_config(config: LoraConfig) -> JsonDict:
    """The configuration as PEFT writes it to adapter_config.json (sets become sorted lists)."""
    found: JsonDict = config.to_dict()
    return {name: sorted(value) if isinstance(value, set) else value for name, value in found.items()}


def read_lora_config(folder: Path) -> LoraConfig:
    """The configuration in a PEFT folder.

    Raises:
        BadRequest: PEFT cannot read it, or it is not LoRA's.
    """
    try:
        config = LoraConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadRequest(
            f"{folder}: adapter_config.json cannot be read ({error}); save it again with PEFT"
        ) from error
    if not isinstance(config, LoraConfig):
        raise BadRequest(f"{folder}: holds {type(config).__name__}, not a LoRA adapter; give one")
    return config
