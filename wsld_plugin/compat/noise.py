def quiet() -> None:
    """x"""
