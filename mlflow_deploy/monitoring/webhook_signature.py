"""Signs webhooks as MLflow signs its own, so that one check of signatures works for all."""

from __future__ import annotations

import base64
import hashlib
import hmac

ID, TIMESTAMP, SIGNATURE = "X-MLflow-Delivery-Id", "X-MLflow-Timestamp", "X-MLflow-Signature"
"""Headers of a delivery, as MLflow sends them."""


def sign(secret: str, delivery: str, timestamp: str, body: bytes) -> str:
    """The signature of a delivery, as MLflow makes it."""
    content = f"{delivery}.{timestamp}.".encode() + body
    digest = hmac.new(secret.encode(), content, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"
