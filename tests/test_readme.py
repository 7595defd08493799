"""Le README dit vrai : ses noms existent, ses commandes donnent ce qu'il montre."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import chat_protocol
import client_exo
import pytest
import serveur_exo
from conftest import PATIENCE, ROOT
from sans_gardes import GUARDS

HERE = Path(__file__).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = (chat_protocol, serveur_exo, client_exo)


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def transcripts(text: str) -> list[str]:
    """Rend ce qui est entre des ``` et commence par une commande."""
    return re.findall(r"^```\n(\$ .*?)^```$", text, re.DOTALL | re.MULTILINE)


SESSION = transcripts(section("Trois terminaux"))
OTHERS = [text for text in transcripts(README) if text not in SESSION]


def exists(path: str) -> bool:
    """Dit si `Classe.methode` se trouve dans l'un des trois programmes."""
    for module in MODULES:
        found = module
        for name in path.removeprefix(f"{module.__name__}.").split("."):
            found = getattr(found, name, None)
        if found is not None:
            return True
    return False


def test_chaque_nom_de_ou_lire_quoi_existe():
    names = re.findall(r"`(\w+_\w+\.[\w.]+)`", section("Où lire quoi"))
    names = [name for name in names if not name.endswith(".py")]
    assert len(names) > 15
    assert [name for name in names if not exists(name)] == []


def test_chaque_piege_a_son_epreuve_et_sa_reponse():
    rows = re.findall(r"^\|.*\| `([\w.]+)` \| `(\w+)` \|$", section("Les pièges"), re.M)
    tests = (HERE / "test_pieges.py").read_text(encoding="utf-8")
    assert sorted(test for _, test in rows) == sorted(re.findall(r"^def test_(\w+)", tests, re.M))
    assert [answer for answer, _ in rows if not exists(answer)] == []


def test_chaque_garde_est_encore_dans_le_code():
    tests = (HERE / "test_pieges.py").read_text(encoding="utf-8")
    assert {test for test, *_ in GUARDS} == set(re.findall(r"^def test_(\w+)", tests, re.M))
    for _, file, guard, _ in GUARDS:
        assert (ROOT / file).read_text(encoding="utf-8").count(guard) == 1, guard


def test_chaque_option_du_serveur_est_dans_le_tableau():
    shown = subprocess.run(
        [sys.executable, "serveur_exo.py", "--help"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    options = set(re.findall(r"^  (--[\w-]+)", shown, re.M)) - {"--help"}
    assert set(re.findall(r"^\| `(--[\w-]+)", section("Options du serveur"), re.M)) == options


def test_chaque_programme_nomme_existe():
    programs = set(re.findall(r"python3 ([\w/]+\.py)", README))
    assert len(programs) >= 5
    assert [program for program in programs if not (ROOT / program).exists()] == []


@pytest.mark.parametrize("transcript", OTHERS, ids=lambda text: text.split("\n")[0][2:])
def test_chaque_commande_donne_ce_que_le_readme_montre(serveur, transcript):
    command, shown = re.fullmatch(r"\$ (.*?)\n(.*)", transcript, re.DOTALL).groups()
    if "nc " in command and not shutil.which("nc"):
        pytest.skip("nc n'est pas installé")
    port = str(serveur().port)
    command = command.replace("12345", port)
    if "client_exo" in command and "--port" not in command:
        command += f" --port {port}"
    if "serveur_exo" in command:
        command += f" --port {port}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, timeout=PATIENCE, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.stdout.replace(port, "12345") == shown


def test_la_session_dans_trois_terminaux_est_celle_du_readme(taper):
    """On tape, de part et d'autre, ce que le README montre, et l'on compare les écrans."""
    shown = [text.splitlines()[1:] for text in SESSION]
    program = "import sys, serveur_exo as s\nsys.exit(s.main())"
    server = taper("--port", "0", program=program, width=90)
    server.wait_for("Serveur en attente de connexions...")
    port = re.search(r":(\d+) ", server.seen)[1]
    alice = taper("--port", port, height=24)
    alice.wait_for("Entrez votre nom : ")
    alice.type("Alice\r")
    alice.wait_for("Votre message : ")
    bob = taper("--port", port, height=24)
    bob.wait_for("Entrez votre nom : ")
    bob.type("Bob\r")
    bob.wait_for("Votre message : ")
    alice.wait_for_rows("* Bob a rejoint le chat.", "Votre message :")
    alice.type("Bonjour !\r")
    bob.wait_for("Alice : Bonjour !")
    bob.type("Salut Ali")
    bob.wait_for("Salut Ali")
    alice.wait_for_rows("Votre message : Bonjour !", "Votre message :")
    alice.type("Tu vas bien ?\r")
    bob.wait_for("Tu vas bien ?")
    bob.type("ce\r")
    alice.wait_for_rows("Bob : Salut Alice", "Votre message :")
    alice.type("/liste\r")
    alice.wait_for_rows("* Connectés (2) : Alice, Bob", "Votre message :")
    alice.type("/privé Bob à toi seul\r")
    alice.wait_for_rows("* Message privé envoyé à Bob.", "Votre message :")
    bob.wait_for("à toi seul")
    alice.type("exit\r")
    assert alice.end() == 0
    bob.wait_for("a quitté le chat.")
    bob.wait_for_rows("* Alice a quitté le chat.", "Votre message :")
    server.wait_for("Alice a quitté le chat.")
    screens = [[row.replace(port, "12345") for row in peer.rows()] for peer in (server, alice, bob)]
    assert screens == [[row.rstrip() for row in rows] for rows in shown]
