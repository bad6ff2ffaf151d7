"""Rows made from editable content: YAML frames and fillers below `content/`, expanded deterministically by seed."""
