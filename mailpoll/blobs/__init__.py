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
)
from .fallback import Storage, storage_from_url
from .local import LocalFiles
from .s3 import S3

__all__ = [
    "S3",
    "BlobCorrupt",
    "BlobMissing",
    "BlobStore",
    "Listed",
    "LocalFiles",
    "NewBlob",
    "Storage",
    "StorageType",
    "StoreUnavailable",
    "blob_key",
    "storage_from_url",
]
