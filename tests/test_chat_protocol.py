"""Les règles de la conversation : des octets, du texte, et ce qu'un vrai serveur en fait."""

import ast
import errno
import random
import re
import socket
import unicodedata
from pathlib import Path

import chat_protocol as protocol
import pytest

SESSION = "Élise\r\nBonjour\n\u2028même ligne\r\0fin".encode()


# --- Des octets aux lignes ---------------------------------------------------------


def lines_of(data: bytes, size: int, max_bytes: int = protocol.MAX_LINE_BYTES) -> list[bytes]:
    """Renvoie les lignes d'un flux que recv donnerait par morceaux de `size` octets."""
    buffer, lines = protocol.LineBuffer(max_bytes), []
    for start in range(0, len(data), size):
        lines += buffer.feed(data[start : start + size])
    return lines + buffer.last_line()


@pytest.mark.parametrize("size", [1, 2, 5, len(SESSION)], ids=lambda n: f"par_{n}")
def test_toute_decoupe_donne_les_memes_lignes(size):
    lines = [line.decode() for line in lines_of(SESSION, size)]
    assert lines == ["Élise", "Bonjour", "\u2028même ligne", "fin"]


@pytest.mark.parametrize("size", [1, 3, 100], ids=lambda n: f"par_{n}")
def test_une_ligne_trop_longue_se_reconnait_et_la_suivante_est_entiere(size):
    data = b"x" * 20 + b"\r\0suite\r\n" + b"y" * 8 + b"\r\n" + b"z" * 9
    lines = lines_of(data, size, max_bytes=8)
    assert [len(line) > 8 for line in lines] == [True, False, False, True]
    assert lines[1:3] == [b"suite", b"y" * 8]


def test_une_ligne_de_4096_octets_passe_avec_son_retour_chariot():
    (line,) = protocol.LineBuffer().feed(b"x" * 4096 + b"\r\n")
    assert protocol.decode_line(line) == "x" * 4096


def test_une_ligne_trop_longue_est_renvoyee_une_fois_et_sa_suite_jetee():
    buffer = protocol.LineBuffer()
    (long_line,) = buffer.feed(b"x" * 5000)
    with pytest.raises(protocol.Refused):
        protocol.decode_line(long_line)
    assert buffer.feed(b"x" * 100_000) == []
    assert buffer.feed(b"x\nsuite\n") == [b"suite"]


@pytest.mark.parametrize("size", [1, 4], ids=lambda n: f"par_{n}")
def test_la_derniere_ligne_compte_meme_si_sa_fin_est_coupee_en_deux(size):
    assert lines_of(b"fin\r", size) == [b"fin"]


# --- Ce que l'on tape, colle et envoie vraiment --------------------------------------

# Ce qu'une personne ne voit pas, un caractère de chaque sorte : un copier-coller les ajoute.
INVISIBLE = (
    "\t\u00a0\u3000\x01\x1b\x7f\x85\u2028\u200e\u061c\u202a\u202e\u2066\u2068\u206a\u206f"
    "\u00ad\u034f\u115f\u17b4\u180b\u180e\u180f\u200b\u200d\u2060\u2065\u3164\ufe00\ufe0f\ufeff\uffa0"
    "\ufff0\U000e0001\U000e0020\U000e01ef\U000e0fff"
)

# (ce que Dan envoie, ce que Bob voit, le début de ce que Dan voit) ; None : rien. Un cas signalé
# devient une rangée de plus.
INPUTS = [
    (b"Bonjour", "Dan : Bonjour", None),
    ("\ufeffBonjour".encode(), "Dan : Bonjour", None),
    ("\u00a0Bonjour\u200b".encode(), "Dan : \u00a0Bonjour\u200b", None),
    ("\ufeff/privé Bob secret".encode(), "Dan (privé) : secret", "* Message privé envoyé à Bob."),
    ("\u00a0/privé\u00a0Bob\u3000secret".encode(), "Dan (privé) : secret", "* Message privé"),
    ("\u200b/privé Bob  secret ".encode(), "Dan (privé) :  secret ", "* Message privé"),
    ("\u200e/privé\u200bBob\u00adsecret".encode(), "Dan (privé) : secret", "* Message privé"),
    ("\u2028\x0b/privé Bob \x1bsecret".encode(), "Dan (privé) : \ufffdsecret", "* Message privé"),
    ("/prive\u0301 bob secret".encode(), "Dan (privé) : secret", "* Message privé"),
    ("/privé Bob \u00a0\u200b".encode(), None, "! Il manque le nom ou le message"),
    *((f"{mark}/mp bob secret".encode(), "Dan (privé) : secret", "* Message") for mark in INVISIBLE),
    ("/privé Bob //secret".encode(), "Dan (privé) : //secret", "* Message privé"),
    ("/privé Zoé salut".encode(), None, "! Personne ne s'appelle Zoé ici"),
    ("/privé Dan salut".encode(), None, "! Ce message est pour vous-même"),
    (b"exit", None, "* Au revoir, Dan."),
    ("\u2060EXIT\u200f".encode(), None, "* Au revoir, Dan."),
    *((f"{mark}exit{mark}".encode(), None, "* Au revoir, Dan.") for mark in INVISIBLE),
    (b"exit vite", "Dan : exit vite", None),
    ("exıt".encode(), "Dan : exıt", None),
    ("/liste\u00a0".encode(), None, "* Connectés (2) : Bob, Dan"),
    ("/LISTE de course".encode(), None, "* Connectés (2) : Bob, Dan"),
    ("/\u200bliste".encode(), None, "! Commande inconnue : / (tapez /aide)."),
    (b"/" + b"d" * 50, None, f"! Commande inconnue : /{'d' * 39} (tapez /aide)."),
    ("/danse\x1b[2J vite".encode(), None, "! Commande inconnue : /danse"),
    ("\u00a0//aide".encode(), "Dan : \u00a0/aide", None),
    (b"//voir http://x", "Dan : /voir http://x", None),
    (INVISIBLE.encode(), None, None),
    (b"\xff\xf4\xff\xfdBonjour", "Dan : onjour", None),  # IAC IP, IAC DO et son option
    (b"Bon\xff\xf1jour\xff\xfb\x1f", "Dan : Bonjour", None),  # IAC NOP, IAC WILL NAWS
    (b"\xff\xfa\x18\x00xterm\xff\xf0/liste", None, "* Connectés (2)"),  # IAC SB … IAC SE
    (b"Bonjour\xff\xfa\x18\x00xte", "Dan : Bonjour", None),
    (b"Bonjour\xff", "Dan : Bonjour", None),
    (b"\xff\xf1/danse", None, "! Commande inconnue : /danse"),
    (b"a\xffb", "Dan : a", None),
    (b"\xfe", None, "! Ligne illisible"),
    (b"x" * 4090 + b"\xff\xf1" * 4, None, "! Ligne trop longue"),
    ("a\x1b[2J\u202eb\tc\x85".encode(), "Dan : a\ufffd[2J\ufffdb\tc\ufffd", None),
    ("👩\u200d🚀 e\u0301\u00a0!".encode(), "Dan : 👩\u200d🚀 e\u0301\u00a0!", None),
]


@pytest.mark.parametrize(("sent", "seen", "answer"), INPUTS)
def test_chaque_ligne_fait_ce_qu_elle_montre(lobby, sent, seen, answer):
    dan, bob = lobby.room("Dan", "Bob")  # dans cet ordre : /liste les range autrement
    dan.send(sent + b"\n")
    dan.sock.shutdown(socket.SHUT_WR)
    assert bob.lines_until("* Dan a quitté le chat.") == ([seen] if seen else [])
    answers = list(iter(dan.line, ""))
    assert len(answers) == bool(answer)
    assert all(line.startswith(answer) and line.isprintable() for line in answers)


def test_aucune_ligne_qui_ressemble_a_une_commande_n_est_un_message():
    """La règle est redite ici autrement : chercher le premier caractère visible, un par un."""

    def is_invisible(char: str) -> bool:
        return char.isspace() or unicodedata.category(char) == "Cc" or char in INVISIBLE

    pieces = [char.encode() for char in "/ae\v\f\x1f\u2003" + INVISIBLE]
    pieces += [b"/", b"exit", b"\xff\xf1", b"\xff\xfb\x01", b"//"] * 3
    dice = random.Random(20)
    messages = 0
    for _ in range(100_000):
        line = b"".join(dice.choices(pieces, k=dice.randrange(6)))
        text = line.replace(b"\xff\xf1", b"").replace(b"\xff\xfb\x01", b"").decode()
        visible = "".join(char for char in text if not is_invisible(char))
        if protocol.parse(protocol.decode_line(line))[0] == "message":
            messages += 1
            assert visible not in ("", "exit"), repr(line)
            assert visible[0] != "/" or text[text.index("/") :].startswith("//"), repr(line)
    assert messages > 10_000


# --- Les noms ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Alice", "Élise", "O'Neil", "李", "नमिता", "7", "a.b-c_d", "D’Or"])
def test_un_nom_correct_est_accepte(name):
    assert protocol.normalize_name(f"{INVISIBLE}{name}{INVISIBLE}") == name


@pytest.mark.parametrize(
    "name",
    ["", "exit", "ＥＸＩＴ", "-a", "a b", "a\u00a0b", "a:b", "*", "[x", "a\u034fb", "a\ufe0fb",
     INVISIBLE, "a" * 33, "a\u200db", "a\x01b", "\u0301a"],
)  # fmt: skip
def test_un_nom_trompeur_est_refuse(name):
    with pytest.raises(protocol.Refused):
        protocol.normalize_name(name)


@pytest.mark.parametrize(
    ("name", "quoted"),
    [("O´Brien", "« ´ » (U+00B4)"), ("a½b", "« ½ » (U+00BD)"), ("a\u202eb", "« \ufffd » (U+202E)")],
)
def test_un_refus_cite_le_caractere_qui_a_ete_tape(name, quoted):
    with pytest.raises(protocol.Refused, match=re.escape(quoted)):
        protocol.normalize_name(name)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("STRASSE", "straße"), ("e\u0301lise", "Élise"), ("O'Brien", "O’BRIEN"),
        ("O'Brien", "OʼBrien"), ("μαΐου", "ΜΑΪ\u0301ΟΥ"),
    ],
)  # fmt: skip
def test_deux_ecritures_du_meme_nom_sont_le_meme_nom(one, other):
    assert protocol.name_key(one) == protocol.name_key(other)


def test_la_liste_est_rangee_comme_un_dictionnaire_francais():
    names = ["Zoé", "Ǿyvind", "Œdipe", "Lætitia", "Łukasz", "alice", "Élise", "Alice", "Kevin", "Lucas",
             "Søren", "Straße", "Strass", "Odile"]  # fmt: skip
    assert protocol.alphabetical(names) == [
        "Alice", "alice", "Élise", "Kevin", "Lætitia", "Lucas", "Łukasz", "Odile", "Œdipe",
        "Ǿyvind", "Søren", "Strass", "Straße", "Zoé",
    ]  # fmt: skip


# --- La ligne de commande --------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("::1", "::1"), ("[::1]", "::1"), (" [::1]\u00a0", "::1"), ("fe80::1%eth0", "fe80::1%eth0"),
        ("\u200blocalhost ", "localhost"),
    ],
)  # fmt: skip
def test_les_blancs_et_les_crochets_autour_d_une_adresse_sont_otes(monkeypatch, text, host):
    monkeypatch.setattr("sys.argv", ["serveur_exo.py", "--hote", text])
    assert protocol.parse_options(protocol.new_option_parser("", "")).hote == host


@pytest.mark.parametrize("code", ["EDQUOT", "EROFS", "ENOTDIR", "ENAMETOOLONG", "ELOOP", "EIO"])
def test_aucune_cause_n_est_dite_en_anglais(code):
    number = getattr(errno, code)
    reason = protocol.explain(OSError(number, "English words"))
    assert "English" not in reason and reason == reason.strip(".")


def test_le_protocole_n_importe_rien_qui_lance_ou_qui_attend():
    tree = ast.parse(Path(protocol.__file__).read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert not imported & {"select", "signal", "subprocess", "threading", "time"}
