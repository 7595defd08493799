"""Le README dit vrai : ses noms existent, ses commandes donnent ce qu'il montre."""

import math
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import chat_protocol
import client_exo
import pytest
import serveur_exo
from conftest import PATIENCE, ROOT, needs

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "lecon"))
import etapes
from sans_gardes import GUARDS

SERVER = "import sys, serveur_exo as s\nsys.exit(s.main())"
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = (chat_protocol, serveur_exo, client_exo)


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def transcripts(text: str) -> list[str]:
    """Renvoie chaque commande qui est entre des ```, et ce qu'elle affiche."""
    blocks = re.findall(r"^```\n(\$ .*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [part.rstrip("\n") + "\n" for block in blocks for part in block.split("\n\n")]


# Chaque commande donnée hors d'un ```…``` : le test qui la joue, ou pourquoi aucun ne le peut.
COMMANDS = {
    "python3 --version": "la version est celle de chaque machine",
    "python3 serveur_exo.py": "test_la_session_dans_trois_terminaux_est_celle_du_readme",
    "python3 client_exo.py": "test_la_session_dans_trois_terminaux_est_celle_du_readme",
    "python3 serveur_exo.py --hote 0.0.0.0": "test_le_chat_s_ouvre_a_une_salle",
    "yes | python3 client_exo.py --nom Bavard":
        "test_un_client_bavard_n_empeche_pas_les_autres_et_s_arrete_a_ctrl_c",
    "python3 tests/lecon/etape0.py": "test_a_l_etape_0_une_fenetre_fermee_parle_sans_fin",
    "python3 tests/lecon/client_naif.py 12345": "test_a_l_etape_0_une_fenetre_fermee_parle_sans_fin",
    "diff tests/lecon/etape4.py tests/lecon/etape5.py": "test_deux_etapes_se_comparent",
    "python3 tests/lecon/sans_gardes.py": "test_sans_sa_protection_un_test_echoue",
    "python3 tests/lecon/loupe.py reveil": "une scène, que test_loupe.py joue",
    "nc 127.0.0.1 12345": "test_nc_sert_de_client",
    "python3 -u": "une façon de lancer le client, dite dans les limites",
    "python3 -m venv .venv"
    " && .venv/bin/pip install -q -r requirements-dev.txt"
    " && .venv/bin/python -m pytest -W error": ".ci/run",
    r"py -m venv .venv; .venv\Scripts\pip install -q -r requirements-dev.txt;"
    r" .venv\Scripts\python -m pytest -W error": ".github/workflows/tests.yml",
}  # fmt: skip

SESSION = transcripts(section("Trois terminaux"))
STEPS = transcripts(section("Les pièges et les étapes"))  # test_pieges.py joue chaque case
OTHERS = [text for text in transcripts(README) if text not in SESSION + STEPS]


def exists(path: str) -> bool:
    """Renvoie True si `Classe.methode` se trouve dans l'un des trois programmes."""
    for module in MODULES:
        found = module
        for name in path.removeprefix(f"{module.__name__}.").split("."):
            found = getattr(found, name, None)
        if found is not None:
            return True
    return False


def test_le_readme_reste_court():
    assert len(README.splitlines()) <= 200
    assert len(README.split()) <= 1700
    assert [line for line in README.splitlines() if len(line) > 120] == []


def test_chaque_arret_dans_le_code_existe():
    stops = [line for line in section("Six arrêts dans le code").splitlines() if line]
    assert len(stops) == 6
    for stop in stops:
        names = re.findall(r"`(\w+_\w+\.[\w.]+)`", stop)
        assert names and all(map(exists, names)), stop


def test_chaque_nom_des_exercices_est_dans_le_code():
    code = "".join(Path(module.__file__).read_text(encoding="utf-8") for module in MODULES)
    names = set(re.findall(r"`(?:[\w.]+\.)?(\w+)`", section("Exercices")))
    assert {"_VERBS", "become", "expire"} <= names
    assert {name for name in names if not re.search(rf"\b{name}\b", code)} == {"asyncio"}


def test_la_rangee_de_chaque_piege_passe_de_x_a_point_a_l_etape_dite():
    traps = section("Les pièges et les étapes")
    rows = re.findall(r"^(.+?) +\| .+ \| `([\w.]+)` \| ([1-8]|client)$", traps, re.M)
    assert len(rows) == 8
    assert [answer for _, answer, _ in rows if not exists(answer)] == []
    missed = {trap: len(steps) for trap, steps in re.findall(r"^(.+?) +(x*)\.+\|", STEPS[0], re.M)}
    assert [row for row in rows if row[2] not in ("client", str(missed.get(row[0])))] == []


def test_le_tableau_des_etapes_est_celui_que_les_tests_verifient():
    expected = "\n".join(etapes.table(etapes.expected, list(etapes.TRAPS)))
    assert STEPS == [f"$ python3 tests/lecon/etapes.py\n{expected}\n"]
    assert max(map(len, expected.splitlines())) <= 80


def test_l_image_des_etats_est_celle_du_serveur():
    picture = re.search("^```\n(naming .*?)^```", README, re.DOTALL | re.M)[1]
    seconds = serveur_exo.STATE_SECONDS
    assert sorted(word for word in re.findall("[a-z]+", picture) if word in seconds) == sorted(seconds)
    timed = ["naming", "late", "leaving"]  # de gauche à droite et de haut en bas
    assert [state for state in seconds if math.isfinite(seconds[state])] == timed
    assert re.findall(r"(\d+) s", picture) == [str(seconds[state]) for state in timed]
    assert f"{serveur_exo.LATE_BYTES // 2**20} Mio de retard" in picture


def test_chaque_protection_est_encore_dans_le_code():
    tests = (HERE / "test_pieges.py").read_text(encoding="utf-8")
    tests = set(re.findall(r"^def (test_\w+)", tests, re.M))
    named = {trap for trap, *_ in GUARDS}
    doubled = {"reset_avant", "liste", "ordre"}  # doublement évités : un test à part pour chacun
    assert named - tests == set(etapes.TRAPS) - doubled
    for _, file, guard, _ in GUARDS:
        assert (ROOT / file).read_text(encoding="utf-8").count(guard) == 1, guard


def test_chaque_option_du_serveur_est_dans_le_readme():
    shown = subprocess.run(
        [sys.executable, "serveur_exo.py", "--help"], cwd=ROOT, capture_output=True, encoding="utf-8"
    ).stdout
    options = set(re.findall(r"^  (--[\w-]+)", shown, re.M)) - {"--help"}
    told = section("Le protocole")
    assert set(re.findall(r"`(--[\w-]+)", told)) == options
    defaults = re.findall(r"(--[\w-]+) [A-Z]+ [^()-]*\((\S+) par défaut\)", " ".join(shown.split()))
    assert len(defaults) == 4
    for option, value in defaults:
        assert re.search(rf"^`{option} .*\b{value}\b.* par défaut", told, re.M), option


def test_les_tests_se_lancent_partout_comme_le_readme_le_dit():
    """Sur les machines de GitHub, « py » ne serait pas le Python que l'on y demande."""
    workflow = (ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8")
    commands = re.findall("^    (.*)|`(py .*)`", section("Tests"), re.M)
    assert len(commands) == 2
    for unix, windows in commands:
        assert f"run: {unix or windows.replace('py ', 'python ', 1)}\n" in workflow


def test_aucune_commande_du_readme_n_echappe():
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
    lines = re.findall(r"^    (\w.*)", prose, re.MULTILINE)
    words = re.findall(r"`([^`]+)`", prose.replace("\n", " "))
    words = [word for word in words if re.match("(python3|py|yes|nc|diff) .", word)]
    assert set(lines + words) == set(COMMANDS)
    tests = [where for where in COMMANDS.values() if where.startswith("test_")]
    assert [name for name in tests if name not in globals()] == []


# « python3 » est celui du test, comme dans l'environnement virtuel d'un lecteur.
SHELL = {
    "cwd": ROOT,
    "stdin": subprocess.DEVNULL,
    "start_new_session": True,
    "env": {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
}


def run(command: str) -> subprocess.CompletedProcess:
    """Fait jouer une ligne par bash ; ce qu'elle affiche est dans stdout."""
    needs("bash")
    return subprocess.run(
        ["bash", "-c", command], timeout=PATIENCE, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **SHELL,
    )  # fmt: skip


@pytest.mark.parametrize("transcript", OTHERS, ids=lambda text: text.split("\n")[0][2:])
def test_chaque_commande_donne_ce_que_le_readme_montre(transcript):
    """« … », seul sur sa ligne, remplace des lignes."""
    command, shown = re.fullmatch(r"\$ (.*?)\n(.*)", transcript, re.DOTALL).groups()
    done = run(command).stdout
    if "loupe" in command:  # l'ordre est sûr à l'intérieur d'un thread, pas d'un thread à l'autre
        assert by_thread(done.partition("\n\n")[2]) == by_thread(shown.removeprefix("…\n"))
    else:
        parts = "(?:.*\n)*".join(map(re.escape, shown.split("…\n")))
        assert re.fullmatch(parts, done), done


def by_thread(shown: str) -> list[str]:
    """Renvoie les rangées de la loupe, celles de chaque thread ensemble et dans leur ordre."""
    return sorted(shown.splitlines(), key=lambda row: row[:16])


def test_nc_sert_de_client(start_server):
    needs("nc")
    done = run(f"printf 'Alice\\n/liste\\nexit\\n' | nc 127.0.0.1 {start_server().port}")
    assert done.stdout.splitlines() == [
        "* Bienvenue, Alice ! (/aide : les commandes)",
        "* Connectés (1) : Alice",
        "* Au revoir, Alice.",
    ]


def test_deux_etapes_se_comparent():
    done = run("diff tests/lecon/etape4.py tests/lecon/etape5.py")
    assert done.returncode == 1 and "\n> " in done.stdout


def test_la_session_dans_trois_terminaux_est_celle_du_readme(terminal):
    """On tape, de part et d'autre, ce que le README montre, et l'on compare les écrans."""
    shown = [text.splitlines()[1:] for text in SESSION]
    server = terminal("--port", "0", program=SERVER, width=90)
    server.wait_for("Serveur en attente de connexions...")
    port = re.search(r":(\d+) ", server.seen)[1]
    alice = terminal("--port", port, height=24)
    alice.wait_for("Entrez votre nom : ")
    alice.type("Alice\r")
    alice.wait_for("Votre message : ")
    bob = terminal("--port", port, height=24)
    bob.wait_for("Entrez votre nom : ")
    bob.type("Bob\r")
    bob.wait_for("Votre message : ")
    alice.wait_for_rows("* Bob a rejoint le chat.", "Votre message :")
    bob.type("Salut Ali")
    bob.wait_for("Salut Ali")
    alice.type("Bonjour !\r")
    bob.wait_for("Alice : Bonjour !")
    bob.type("ce\r")
    alice.wait_for_rows("Votre message : Bonjour !", "Bob : Salut Alice", "Votre message :")
    alice.type("exit\r")
    assert alice.end() == 0
    bob.wait_for("a quitté le chat.")
    bob.wait_for_rows("* Alice a quitté le chat.", "Votre message :")
    server.wait_for("Alice a quitté le chat.")
    screens = [[row.replace(port, "12345") for row in peer.rows()] for peer in (server, alice, bob)]
    assert screens == [[row.rstrip() for row in rows] for rows in shown]


def test_sans_sa_protection_un_test_echoue():
    """Le script les enlève toutes ; une suffit ici pour voir qu'il marche."""
    done = run("python3 tests/lecon/sans_gardes.py doublon")
    assert (done.returncode, done.stdout) == (0, "échoue  doublon\n")


def without_guards(*command: str, cwd: Path = ROOT) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, encoding="utf-8", timeout=PATIENCE
    )
    return done.returncode, done.stdout, done.stderr


def test_sans_pytest_aucune_protection_ne_parait_inutile():
    code, shown, reason = without_guards("-S", "tests/lecon/sans_gardes.py")  # -S : rien d'installé
    assert (code, shown) == (2, "") and reason.startswith("Il faut pytest")


def test_des_tests_que_pytest_ne_peut_pas_lire_arretent_tout(tmp_path):
    needs("de copier des fichiers")
    shutil.copytree(ROOT / "tests", tmp_path / "tests")
    for program in ROOT.glob("*.py"):
        shutil.copy(program, tmp_path)
    with open(tmp_path / "tests/test_pieges.py", "a", encoding="utf-8") as tests:
        tests.write("\nimport un_module_absent\n")
    code, shown, reason = without_guards("tests/lecon/sans_gardes.py", "doublon", cwd=tmp_path)
    assert (code, shown) == (2, "") and "No module named 'un_module_absent'" in reason


# --- Ouvrir à une salle, et les expériences --------------------------------------


def test_le_chat_s_ouvre_a_une_salle(start_server, terminal):
    server = start_server("--hote", "0.0.0.0")
    assert server.listening.startswith("Écoute sur 0.0.0.0:")
    alice = terminal("--hote", "127.0.0.1", "--port", str(server.port), "--nom", "Alice")
    alice.wait_for("Bienvenue, Alice !")


def test_un_client_tue_quitte_le_chat(start_server, terminal):
    server = start_server()
    alice = server.connect("Alice")
    bob = terminal("--port", str(server.port), "--nom", "Bob")
    assert alice.line() == "* Bob a rejoint le chat."
    bob.process.kill()
    assert alice.line() == "* Bob a quitté le chat."


def test_un_client_bavard_n_empeche_pas_les_autres_et_s_arrete_a_ctrl_c(start_server, tmp_path):
    needs("bash")
    server = start_server()
    alice, bob = server.connect("Alice"), server.connect("Bob")
    received = tmp_path / "recu.txt"
    command = f"yes | python3 client_exo.py --nom Bavard --port {server.port}"
    streams = {"stdout": received.open("wb"), "stderr": subprocess.DEVNULL}
    with streams["stdout"]:
        flood = subprocess.Popen(["bash", "-c", command], **streams, **SHELL)
    assert bob.line() == "* Bavard a rejoint le chat."
    for _ in range(100):
        assert bob.line() == "Bavard : y"
    alice.send("On s'entend ?\n")
    while (line := bob.line()) == "Bavard : y":
        pass
    assert line == "Alice : On s'entend ?"
    os.killpg(flood.pid, signal.SIGINT)  # ce que fait Ctrl+C
    flood.wait(PATIENCE)
    late = 0  # des milliers, si le système envoyait encore tout ce qui attendait
    while (line := bob.line()) == "Bavard : y" and late < 1000:
        late += 1
    assert line == "* Bavard a quitté le chat."
    assert "Alice : On s'entend ?\n" in received.read_text(encoding="utf-8")


def test_une_console_figee_montre_tout_une_fois_degelee(terminal):
    server = terminal("--port", "0", program=SERVER, width=90)
    server.wait_for("Serveur en attente de connexions...")
    port = re.search(r":(\d+) ", server.seen)[1]
    alice, bob = (terminal("--port", port, "--nom", name) for name in ("Alice", "Bob"))
    for client in (alice, bob):
        client.wait_for("Votre message : ")
    server.wait_for("Bob (127.0.0.1) a rejoint le chat.")
    server.type("\x13")  # Ctrl+S
    alice.type("Bonjour !\r")
    bob.wait_for("Alice : Bonjour !")
    bob.type("/liste\r")
    bob.wait_for("Connectés (2)")
    assert not select.select([server.master], [], [], 0)[0]
    server.type("\x11")  # Ctrl+Q
    server.wait_for("Alice : Bonjour !")


ETAPE_0 = """
import runpy, socket
listener = socket.create_server(("127.0.0.1", 0))
socket.create_server = lambda address: listener
print(listener.getsockname()[1], flush=True)
runpy.run_path("tests/lecon/etape0.py", run_name="__main__")
"""


def test_a_l_etape_0_une_fenetre_fermee_parle_sans_fin(terminal):
    command = [sys.executable, "-c", ETAPE_0]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as server:
        try:
            port = server.stdout.readline().decode().strip()
            alice = terminal("--port", port, "--nom", "Alice")
            alice.wait_for("Bienvenue")
            naive = (HERE / "lecon/client_naif.py").read_text(encoding="utf-8")
            bob = terminal(port, program=naive)
            bob.wait_for("Entrez votre nom : ")
            bob.type("Bob\r")
            bob.wait_for("Bienvenue")
            bob.process.send_signal(signal.SIGHUP)  # ce que fait une fenêtre qui se ferme
            alice.wait_for("Bob : ", times=50)
        finally:
            server.kill()


@pytest.mark.parametrize("name", ["depart", *(path.stem for path in etapes.STEPS)])
def test_chaque_etape_se_lance_seule(name):
    command = [sys.executable, "-u", HERE / f"lecon/{name}.py", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as step:
        assert step.stdout.readline() == "Serveur en attente de connexions...\n"
        step.kill()
