from crane.words import counted, listed


def test_one_is_singular() -> None:
    assert [counted(number, "item") for number in (0, 1, 2, 1000)] == ["0 items", "1 item", "2 items", "1,000 items"]


def test_many_names_end_in_dots() -> None:
    assert listed(["u1", "u2"]) == "u1, u2"
    assert listed(list("abcde")) == "a, b, c, d, e"
    assert listed(list("abcdef")) == "a, b, c, d, e, ..."
