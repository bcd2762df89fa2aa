from fb3.system.progress import progress, say


def test_plain_lines_where_there_is_no_terminal(capsys):
    with progress("fold 0", 4, every_seconds=0.0) as advance:
        for _ in range(4):
            advance(1, "loss 0.1")
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("fold 0: 4/4")
    assert lines[0].endswith("loss 0.1")


def test_a_note_stays_until_the_next(capsys):
    with progress("fold 0", 3, every_seconds=0.0) as advance:
        advance(note="loss 0.1")
        advance()
        advance(note="loss 0.2")
    lines = capsys.readouterr().err.splitlines()
    assert [line[-8:] for line in lines] == ["loss 0.1", "loss 0.1", "loss 0.2"]


def test_no_line_before_its_minute_and_none_when_hidden(capsys):
    for shown in (True, False):
        with progress("x", 2, shown=shown) as advance:
            advance()
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress("fold 0", 2) as advance:
        advance(1, "loss [0.1]")
        say("a line [with brackets]")
    assert "a line [with brackets]" in capsys.readouterr().err
