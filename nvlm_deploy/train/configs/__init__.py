"""Training configs, one YAML file each; `nvlm-train configs` lists them."""
