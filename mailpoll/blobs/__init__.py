"""Blobs: raw messages and attachments, in an object store or in local files."""

from .blob import (
    BlobCorrupt,
    BlobMissing,
    NewBlob,
    StorageType,
    StoreUnavailable,
    blob_key,
    split_key,
)
from .fallback import Storage, storage_from_url
from .form import Form
from .local import LocalFiles
from .store import BlobStore, Listed

__all__ = [
    "BlobCorrupt",
    "BlobMissing",
    "BlobStore",
    "Form",
    "Listed",
    "LocalFiles",
    "NewBlob",
    "Storage",
    "StorageType",
    "StoreUnavailable",
    "blob_key",
    "split_key",
    "storage_from_url",
]
