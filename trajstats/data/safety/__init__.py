"""What untrusted files may do: sizes, links, codecs, credentials in addresses."""
