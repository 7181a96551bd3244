from deltamem.io.json_lines import whole_lines


def test_what_was_broken_off_is_told_apart(tmp_path):
    file = tmp_path / "rows.jsonl"
    text = 'one\u2028line\nZo\u00eb\n{"half": "Zo\u00eb'
    file.write_bytes(text.encode()[:-1])  # within the last character
    lines, rest = whole_lines(file)
    assert lines == ["one\u2028line", "Zo\u00eb"]
    assert rest.startswith('{"half": "Zo')
    file.write_bytes(b"")
    assert whole_lines(file) == ([], "")
