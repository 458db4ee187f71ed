"""Registered losses."""
from .wsld_loss import WSLDLoss

__all__ = ['WSLDLoss']
