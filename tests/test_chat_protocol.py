"""Les règles de la conversation, sans rien d'autre : des octets et du texte."""

import ast
import errno
import random
from pathlib import Path

import chat_protocol as protocol
import pytest
import serveur_exo

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
    lines = lines_of(b"x" * 20 + b"\r\0suite\r\n" + b"y" * 8 + b"\r\n" + b"z" * 9, size, max_bytes=8)
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
    assert len(buffer._rest) == 1
    assert buffer.feed(b"x\nsuite\n") == [b"suite"]


# --- Ce que l'on tape, colle et envoie vraiment --------------------------------------

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
    ("exit\u00a0".encode(), "* Dan a quitté le chat.", "* Au revoir, Dan."),
    ("\u2060EXIT\u200f".encode(), "* Dan a quitté le chat.", "* Au revoir, Dan."),
    (b"exit vite", "Dan : exit vite", None),
    ("exıt".encode(), "Dan : exıt", None),
    ("/liste\u00a0".encode(), None, "* Connectés (2) : Bob, Dan"),
    ("/LISTE de course".encode(), None, "* Connectés (2) : Bob, Dan"),
    ("/\u200bliste".encode(), None, "! Commande inconnue : / (tapez /aide)."),
    (b"/" + b"d" * 50, None, f"! Commande inconnue : /{'d' * 39} (tapez /aide)."),
    ("\u00a0//aide".encode(), "Dan : \u00a0/aide", None),
    ("\u00a0\u200b\ufeff\t".encode(), None, None),
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


def members(*names: str) -> tuple:
    """Renvoie un salon, et ces clients qui y sont entrés."""
    room = serveur_exo.Room()
    clients = [serveur_exo.Client(None, "127.0.0.1") for _ in names]
    for client, name in zip(clients, names):
        room.receive(client, [name.encode()])
    for client in clients:
        client.outbox.clear()
    return room, *clients


def mail_of(client) -> list[str]:
    lines = b"".join(client.outbox).decode().split("\n")[:-1]
    client.outbox.clear()
    return lines


@pytest.mark.parametrize(("sent", "seen", "answer"), INPUTS)
def test_chaque_ligne_fait_ce_qu_elle_montre(sent, seen, answer):
    room, bob, dan = members("Bob", "Dan")
    room.receive(dan, [sent])
    assert mail_of(bob) == ([seen] if seen else [])
    answers = mail_of(dan)
    assert len(answers) == bool(answer) and all(line.startswith(answer) for line in answers)


def test_aucune_ligne_qui_ressemble_a_une_commande_n_atteint_le_salon():
    """La règle est redite ici autrement : chercher le premier caractère visible, un par un."""

    def is_invisible(char: str) -> bool:
        return (char.isspace() and not "\x1c" <= char <= "\x1f") or ord(char) in (
            0xAD, 0xFEFF, *range(0x200B, 0x2010), *range(0x2060, 0x2065),
        )  # fmt: skip

    letters = "/ae\x1f\t\v\f\x85\u00a0\u00ad\u200b\u200e\u2003\u2028\u2060\u3000\ufeff"
    pieces = [char.encode() for char in letters] + [b"exit", b"\xff\xf1", b"\xff\xfb\x01", b"//"]
    dice = random.Random(20)
    room, bob, dan = members("Bob", "Dan")
    said = 0
    for _ in range(100_000):
        line = b"".join(dice.choices(pieces, k=dice.randrange(6)))
        room.receive(dan, [line])
        text = line.replace(b"\xff\xf1", b"").replace(b"\xff\xfb\x01", b"").decode()
        visible = text.removeprefix("\ufeff")
        while visible and is_invisible(visible[0]):
            visible = visible[1:]
        for seen in mail_of(bob):
            if not seen.startswith(("* ", "Dan (privé) : ")):
                said += 1
                assert visible and (visible[0] != "/" or visible[1:2] == "/"), repr(line)
        if dan.leaving:
            room, bob, dan = members("Bob", "Dan")
        dan.outbox.clear()
    assert said > 10_000


# --- Les noms ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Alice", "Élise", "O'Neil", "李", "नमिता", "7", "a.b-c_d", "D’Or"])
def test_un_nom_correct_est_accepte(name):
    assert protocol.normalize_name(f"\ufeff\u00a0{name}\t\u200e") == name


@pytest.mark.parametrize(
    "name",
    ["", "exit", "ＥＸＩＴ", "-a", "a b", "a\u00a0b", "a:b", "*", "[x", "a\u034fb", "a\ufe0fb", "\u3164",
     "a" * 33, "a\u200db", "\u0301a"],
)  # fmt: skip
def test_un_nom_trompeur_est_refuse(name):
    with pytest.raises(protocol.Refused):
        protocol.normalize_name(name)


@pytest.mark.parametrize(
    ("one", "other"),
    [("STRASSE", "straße"), ("e\u0301lise", "Élise"), ("O'Brien", "O’BRIEN"), ("O'Brien", "OʼBrien")],
)
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


@pytest.mark.parametrize("text", ["::1", "[::1]", " [::1]\u00a0", "fe80::1%eth0", "localhost"])
def test_les_blancs_et_les_crochets_autour_d_une_adresse_sont_otes(text):
    assert protocol._host(text) in ("::1", "fe80::1%eth0", "localhost")


@pytest.mark.parametrize("code", ["EDQUOT", "EROFS", "ENOTDIR", "ENAMETOOLONG", "ELOOP", "EIO"])
def test_aucune_cause_n_est_dite_en_anglais(code):
    number = getattr(errno, code)
    reason = protocol.explain(OSError(number, "English words"))
    assert "English" not in reason and reason == reason.strip(".")


def test_le_protocole_n_importe_rien_qui_lance_ou_attend():
    tree = ast.parse(Path(protocol.__file__).read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert not imported & {"select", "signal", "subprocess", "threading", "time"}
