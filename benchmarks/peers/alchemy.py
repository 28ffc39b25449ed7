"""SQLAlchemy's view of the tables."""

from __future__ import annotations

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = ["Account", "Base", "Item", "Person"]


class Base(DeclarativeBase):
    """Of all tables here."""


class Person(Base):
    """Three indexed columns."""

    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(index=True)
    age: Mapped[int] = mapped_column(index=True)
    score: Mapped[float] = mapped_column(index=True)


class Item(Base):
    """What :class:`benchmarks.peers.SQLItems` makes, with indexes of its own."""

    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    category: Mapped[str]
    brand: Mapped[str]
    price: Mapped[int]
    rating: Mapped[float]
    title: Mapped[str]
    stock: Mapped[int]


class Account(Base):
    """A balance; number 0 is the counter's."""

    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int]
