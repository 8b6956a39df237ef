"""Training presets as TOML files, one per result they reproduce; `kaem_train.config.settings` reads them."""
