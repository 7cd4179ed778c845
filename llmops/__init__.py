"""From a base model to a served, rated and improving one: LoRA recipes, honest gates, evidence-bound releases."""

__version__ = "0.1.0"
