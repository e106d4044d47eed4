"""Blobs: raw messages and attachments, in an object store or in local files."""

from .base import (
    BlobCorrupt,
    BlobMissing,
    BlobStore,
    Listed,
    NewBlob,
    StorageType,
    StoreUnavailable,
    blob_key,
    split_key,
)
from .fallback import Storage, storage_from_url
from .form import Form
from .local import LocalFiles

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
