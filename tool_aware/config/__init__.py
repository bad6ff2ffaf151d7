"""config.yaml, --set and the environment, typed and checked."""
