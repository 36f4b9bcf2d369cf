"""Model directories: config.json, safetensors, tokenizers, adapters of peft."""
