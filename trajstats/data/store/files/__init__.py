"""Files of a store, on a disk or in an object store, never through a link."""
