"""config.yaml, --set and the environment, typed and checked."""

from tool_aware.console import require_packages

require_packages("pydantic", "yaml")  # what the modules of this folder import, and every script with them
