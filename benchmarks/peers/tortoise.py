"""Tortoise's view of the tables."""

from __future__ import annotations

from tortoise import fields
from tortoise.models import Model

__all__ = ["Item", "Person"]


class Person(Model):
    """Three indexed columns."""

    id = fields.BigIntField(primary_key=True, generated=False)
    name = fields.TextField()
    age = fields.BigIntField()
    score = fields.FloatField()

    class Meta:
        """Which table."""

        table = "person"


class Item(Model):
    """A thing for sale."""

    id = fields.BigIntField(primary_key=True, generated=False)
    category = fields.TextField()
    brand = fields.TextField()
    price = fields.BigIntField()
    rating = fields.FloatField()
    title = fields.TextField()
    stock = fields.BigIntField()

    class Meta:
        """Which table."""

        table = "item"
