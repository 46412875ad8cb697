from crane.words import counted


def test_one_is_singular() -> None:
    assert [counted(number, "item") for number in (0, 1, 2, 1000)] == ["0 items", "1 item", "2 items", "1,000 items"]
