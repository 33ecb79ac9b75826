"""The packed store: format (FORMAT.md), layout, manifest, reader, packer and verification."""
