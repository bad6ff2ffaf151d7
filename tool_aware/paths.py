"""Names of the files and folders that stages leave, once each."""

MANIFEST_NAME = "manifest.json"
