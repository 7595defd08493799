"""Les règles de la conversation, communes au serveur et au client du chat.

Sur TCP, des lignes de texte en UTF-8, finies par « \\n » :

    client → serveur    Alice                          le nom, première ligne
                        Bonjour !                      un message
                        /liste                         une commande
    serveur → client    * Bienvenue, Alice ! (…)       un avis
                        Bob : Salut                    un message
                        Bob (privé) : Psst             un message privé
                        ! Commande inconnue : /danse   une erreur

Ce module n'ouvre ni socket, ni fichier, et ne lance aucun thread. On peut donc l'essayer dans un
interpréteur : LineBuffer().feed(b"Bonjour !\\nSal") renvoie [b"Bonjour !"].
"""

import argparse
import contextlib
import errno
import io
import os
import re
import socket
import sys
import unicodedata


class Refused(Exception):
    """La saisie (ligne, nom, option) est refusée ; str() donne la raison, à afficher."""


# --- Des octets aux lignes ---------------------------------------------------

MAX_LINE_BYTES = 4096  # octets, sans la fin de ligne : une page d'écran bien remplie


class LineBuffer:
    """Reconstitue les lignes d'un flux d'octets, où que recv le coupe.

    TCP transporte un flux, pas des messages : un recv peut renvoyer la moitié d'un caractère ou
    mille lignes. On coupe donc les *octets*, et on ne décode qu'une ligne entière.
    """

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self.max_bytes = max_bytes
        self._rest = b""  # le début d'une ligne dont la fin n'est pas encore arrivée
        self._skipping = False  # True tant qu'on jette la fin d'une ligne trop longue

    def feed(self, data: bytes) -> list[bytes]:
        """Ajoute des octets reçus ; renvoie les lignes qu'ils terminent, sans leur fin de ligne.

        Une ligne finit par « \\n », « \\r\\n » ou, comme telnet l'écrit parfois, « \\r\\0 » (RFC
        1123, 3.3.1). Dès qu'une ligne dépasse `max_bytes` octets, feed renvoie son début, que
        decode_line refusera, et jette la suite : la mémoire ne dépend pas de sa longueur.
        """
        data = (self._rest + data).replace(b"\r\n", b"\n").replace(b"\r\0", b"\n")
        *lines, rest = data.split(b"\n")
        if self._skipping and lines:
            del lines[0]
            self._skipping = False
        if not self._skipping and len(rest.removesuffix(b"\r")) > self.max_bytes:
            lines.append(rest)
            self._skipping = True
        self._rest = rest[-1:] if self._skipping else rest  # tout est jeté, sauf un « \r »
        return lines

    def last_line(self) -> list[bytes]:
        """Renvoie, à la fin du flux, la dernière ligne si elle n'a pas de fin de ligne."""
        last = b"" if self._skipping else self._rest.removesuffix(b"\r")
        return [last] if last else []


# Ce que telnet ajoute (RFC 854) : IAC (ff) et un octet ; encore un octet après WILL, WONT, DO, DONT
# (fb à fe) ; après SB (fa), tout jusqu'à IAC SE (ff f0). La fin de la ligne peut couper cet ajout.
_TELNET = re.compile(rb"\xff(?:[\xfb-\xfe].?|\xfa.*?(?:\xff\xf0|\xff?\Z)|.?)", re.DOTALL)


def decode_line(line: bytes) -> str:
    """Renvoie le texte d'une ligne de client (sans fin de ligne), ou lève Refused."""
    if len(line) > MAX_LINE_BYTES:
        raise Refused(f"Ligne trop longue ({MAX_LINE_BYTES} octets au plus) : coupez-la.")
    try:
        if 0xFF in line:  # IAC : UTF-8 n'utilise jamais cet octet
            line = _TELNET.sub(b"", line)
        return line.decode().removeprefix("\ufeff")  # la marque que certains éditeurs ajoutent
    except UnicodeDecodeError:
        raise Refused("Ligne illisible : elle doit être en UTF-8.") from None


def encode_line(text: str) -> bytes:
    """Renvoie les octets d'une ligne ; « ? » y remplace une moitié de caractère (*surrogate*)."""
    return f"{text}\n".encode("utf-8", errors="replace")


# --- Le texte et les noms ------------------------------------------------------

MAX_NAME_LENGTH = 32  # caractères : le nom est recopié devant chaque message
MAX_QUOTE_LENGTH = 40  # caractères d'un mot que l'on recopie dans une erreur

# Les blancs : ce qu'une personne ne voit pas, et qu'un copier-coller ou AltGr ajoutent. D'abord
# ceux qui prennent de la place (Unicode, White_Space) ; puis les codes de commande, les marques du
# sens d'écriture et les caractères invisibles (Default_Ignorable_Code_Point).
_SPACES = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_MARKS = (
    "\0-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8"
    "\U000e0000-\U000e0fff"
)
_BLANK, _VISIBLE = f"[{_SPACES}{_MARKS}]", f"[^{_SPACES}{_MARKS}]"
_BARE_TEXT = re.compile(f"{_VISIBLE}(?:.*{_VISIBLE})?", re.DOTALL)
_FIRST_WORD = re.compile(f"{_BLANK}*({_VISIBLE}*){_BLANK}?(.*)", re.DOTALL)

# Les caractères qui commandent un terminal ou inversent le sens d'écriture : codes de commande (C0
# sauf la tabulation, DEL, C1), séparateurs de ligne, sens d'écriture (Unicode, annexe 9).
_UNSAFE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_LETTERS = str.maketrans({"æ": "ae", "œ": "oe", "ø": "o", "ł": "l"})  # que NFKD laisse entières


def strip(text: str) -> str:
    """Renvoie `text` sans les blancs qui l'entourent ; "" s'il n'y a que cela."""
    return found[0] if (found := _BARE_TEXT.search(text)) else ""


def cut_word(text: str) -> tuple[str, str]:
    """Renvoie le premier mot de `text`, et le reste sans le blanc qui les sépare."""
    return _FIRST_WORD.fullmatch(text).groups()


def clean(text: str) -> str:
    """Renvoie `text` sans danger pour un terminal : U+FFFD remplace chaque caractère dangereux."""
    # isprintable est plus rapide, et aucun caractère dangereux n'est « imprimable ».
    return text if text.isprintable() else _UNSAFE.sub("\ufffd", text)


def quote(word: str) -> str:
    """Renvoie `word`, écrit par un inconnu, tel qu'on peut le recopier dans une erreur."""
    return clean(word[:MAX_QUOTE_LENGTH])


def alphabetical(names) -> list[str]:
    """Trie comme un dictionnaire français : ni casse ni accents, donc Élise avant Zoé."""

    def without_accents(name: str) -> str:
        decomposed = unicodedata.normalize("NFKD", name.casefold()).translate(_LETTERS)
        return "".join(char for char in decomposed if not unicodedata.combining(char))

    return sorted(names, key=lambda name: (without_accents(name), name))


QUIT_WORD = "exit"  # seul sur sa ligne, il fait quitter le chat : ce n'est donc pas un nom
_APOSTROPHES = str.maketrans("’ʼ", "''")  # un téléphone ou un Mac écrit souvent ’ au lieu de '


def normalize_name(text: str) -> str:
    """Renvoie le nom écrit dans `text`, dans une écriture unique (NFKC, Unicode), ou lève Refused.

    Un nom ne contient ni blanc, ni « : », ni parenthèse, et il commence par une lettre ou un
    chiffre : aucun ne peut imiter une ligne du serveur.
    """
    typed = strip(text)
    name = unicodedata.normalize("NFKC", typed)
    if len(name) > MAX_NAME_LENGTH:
        raise Refused(f"Nom trop long ({MAX_NAME_LENGTH} caractères au plus) : abrégez-le.")
    if name.casefold() == QUIT_WORD:
        raise Refused(f"Nom refusé : « {QUIT_WORD} » est la commande pour quitter.")
    if not (name[:1].isalpha() or name[:1].isdecimal()):
        raise Refused("Nom refusé : il doit commencer par une lettre ou un chiffre.")
    for char in typed:  # et non dans `name` : on recopie ce qui a été tapé
        for part in unicodedata.normalize("NFKC", char):  # « ﬁ » donne deux lettres
            is_word = part.isalpha() or part.isdecimal() or unicodedata.category(part)[0] == "M"
            if not strip(part) or not (is_word or part in "-_.'’"):  # invisible, ou interdit
                raise Refused(
                    f"Nom refusé : caractère interdit « {clean(char)} » (U+{ord(char):04X}) ; "
                    "prenez des lettres, des chiffres et - _ . ' ’ sans espace."
                )
    return name


def name_key(name: str) -> str:
    """Renvoie la clé qui est la même pour toutes les écritures d'un nom (ALICE et Alice)."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    # casefold peut donner un texte qui n'est plus normalisé.
    return unicodedata.normalize("NFKC", folded).translate(_APOSTROPHES)


# --- Les commandes, et les lignes du serveur -----------------------------------

# Une ligne du serveur se reconnaît à son début ; un nom commence par une lettre ou un chiffre.
NOTICE, ERROR, FAREWELL = "* ", "! ", "* Au revoir, "
COMMAND_WORDS = ("/aide", "/liste", "/privé", "/quitter")  # les commandes que Tab complète

HELP_LINES = (
    "/liste : qui est connecté",
    "/privé NOM message : écrire à NOM seul (ou /prive, /mp)",
    "/quitter ou exit : quitter le chat (ou /exit, /quit)",
    "/aide : cette liste (ou /help)",
    "//texte : envoyer le message « /texte »",
)

_VERBS = {
    "/liste": "list", "/privé": "private", "/prive": "private", "/mp": "private",
    "/quitter": "quit", "/exit": "quit", "/quit": "quit", "/aide": "help", "/help": "help",
}  # fmt: skip

# Une ligne vide, une commande ou « exit » ; IGNORECASE prendrait aussi « exıt » (sans point).
_EXIT = f"[{_MARKS}]*".join(["[eE]", "[xX]", "[iI]", "[tT]"])  # des marques entre ses lettres
_MAYBE_COMMAND = re.compile(f"{_BLANK}*(?:/|\\Z|{_EXIT}{_BLANK}*\\Z)")


def parse(text: str) -> tuple[str, str]:
    """Renvoie (verbe, texte) : ce que demande une ligne de client, et le texte qui va avec.

    Les verbes : "nothing" (la ligne n'a que des blancs), "message", "private" (texte : le nom, un
    blanc, le message), "list", "help", "quit", "unknown" (texte : le mot, prêt à être recopié).
    """
    if not _MAYBE_COMMAND.match(text):  # le cas le plus courant, donc le plus rapide
        return "message", text
    bare = strip(text)
    if not bare.startswith("/"):
        return ("quit" if bare else "nothing"), ""  # ce n'est plus que « exit », ou rien
    if bare.startswith("//"):
        return "message", text.replace("//", "/", 1)
    word, rest = cut_word(text)
    # NFC d'abord : un Mac peut écrire « é » en deux caractères.
    verb = _VERBS.get(unicodedata.normalize("NFC", word).casefold(), "unknown")
    if verb == "unknown":
        rest = quote(cut_word(clean(bare))[0])  # clean d'abord : un code couperait le mot
    return verb, rest


# --- Erreurs du système, options de la ligne de commande -----------------------

DEFAULT_HOST = "127.0.0.1"  # cette machine : le réseau n'y a accès que si on le demande
DEFAULT_PORT = 12345

_REASONS = {  # par nom de code, ou d'exception ; un système n'a pas tous ces codes
    "EACCES": "accès réservé ou refusé", "ECONNREFUSED": "connexion refusée",
    "EADDRINUSE": "ce port est déjà pris (un serveur tourne peut-être déjà ici)",
    "EADDRNOTAVAIL": "cette adresse n'est pas à cette machine", "EFBIG": "fichier trop gros",
    "EDQUOT": "quota de disque atteint", "EROFS": "disque en lecture seule",
    "EHOSTUNREACH": "machine injoignable", "ENETUNREACH": "réseau inaccessible",
    "ENOENT": "ce fichier ou son dossier n'existe pas", "EISDIR": "c'est un dossier",
    "EPIPE": "le programme qui lisait s'est arrêté", "EMFILE": "trop de fichiers ouverts",
    "ENOSPC": "disque plein", "ETIMEDOUT": "pas de réponse", "TimeoutError": "pas de réponse",
}  # fmt: skip


def explain(error: Exception) -> str:
    """Renvoie la cause d'une erreur du système, en français, ou son code si elle est rare."""
    code = errno.errorcode.get(getattr(error, "errno", None), type(error).__name__)
    return _REASONS.get(code.removeprefix("WSA"), f"erreur {code} du système")  # WSA : Windows


def host_and_port(host: str, port: int) -> str:
    """Renvoie une adresse telle qu'on l'écrit : 127.0.0.1:12345, [::1]:12345."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def new_option_parser(program: str, host_meaning: str) -> argparse.ArgumentParser:
    """Renvoie un analyseur qui connaît les options communes aux deux programmes."""
    parser = argparse.ArgumentParser(
        description=f"{program} du chat.", add_help=False, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("--help", action="help", help="affiche cette aide et s'arrête")
    meaning = f"{host_meaning} (%(default)s par défaut)"
    parser.add_argument("--hote", metavar="ADRESSE", type=_host, default=DEFAULT_HOST, help=meaning)
    add_number(parser, "--port", DEFAULT_PORT, "port du serveur", high=65535)
    return parser


def parse_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Renvoie les options de la ligne de commande, ou lève Refused, qui cite l'option refusée."""
    try:
        options, unknown = parser.parse_known_args()  # un Refused de `type` en sort
    except argparse.ArgumentError as error:  # son message est en anglais : on le remplace
        unknown = [error.argument_name]
    if unknown:
        word = quote(unknown[0])
        advice = "Ajoutez --help pour voir la liste."
        raise Refused(f"Option « {word} » inconnue ou incomplète. {advice}")
    return options


def add_number(parser, option: str, default: int, meaning: str, low=0, high=1_000_000) -> None:
    """Ajoute une option dont la valeur est un nombre entier de `low` à `high` compris."""

    def whole_number(text: str) -> int:
        if re.fullmatch("[0-9]{1,9}", text) and low <= int(text) <= high:
            return int(text)
        raise Refused(f"{option} : il faut un entier de {low} à {high}, pas « {quote(text)} ».")

    meaning += " (%(default)s par défaut)"
    parser.add_argument(option, metavar="N", default=default, type=whole_number, help=meaning)


def _host(text: str) -> str:
    """Renvoie une adresse sans blancs ni crochets autour, ou lève Refused si un port la suit."""
    host = strip(text)
    if found := re.fullmatch(r"(\[.*\]|[^:]*):([0-9]+)", host):
        address = quote(found[1].strip("[]")) or DEFAULT_HOST
        raise Refused(f"--hote : donnez le port à part : --hote {address} --port {quote(found[2])}")
    host = strip(host.strip("[]"))
    if not host:
        raise Refused("--hote : il faut une adresse (127.0.0.1, par exemple).")
    return host


# --- Le système : le socket, les flux, la session -------------------------------

# TCP_NODELAY envoie tout de suite (sinon, 40 ms d'attente). Une machine disparue se voit en 120 s :
# 60 s de silence (KEEPIDLE ; KEEPALIVE sous macOS) et 4 sondes, ou 120 000 ms sans rien accepter.
SOCKET_OPTIONS = {
    "SO_KEEPALIVE": 1, "TCP_NODELAY": 1, "TCP_KEEPIDLE": 60, "TCP_KEEPALIVE": 60,
    "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 120_000,
}  # fmt: skip


def set_up_socket(sock: socket.socket, is_server: bool) -> None:
    """Donne à un socket connecté chacune de ces options, sauf celles que le système refuse."""
    options = dict(SOCKET_OPTIONS)
    with contextlib.suppress(OSError):  # la connexion est déjà coupée : recv le signalera
        ours, theirs = sock.getsockname()[0], sock.getpeername()[0]
        # Un serveur qui freine un client, ou une même machine, ne prend parfois rien longtemps.
        if not is_server or theirs == ours or theirs.removeprefix("::ffff:").startswith("127."):
            del options["TCP_USER_TIMEOUT"]
    for name, value in options.items():
        level = socket.SOL_SOCKET if name.startswith("SO_") else socket.IPPROTO_TCP
        with contextlib.suppress(OSError, AttributeError):  # un système ne les a pas toutes
            sock.setsockopt(level, getattr(socket, name), value)


def set_up_stream(stream: object) -> None:
    """Règle un flux : « ? » remplace un caractère impossible, et une écriture est bloquante."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
        # Un autre programme a pu le laisser sans attente : une écriture y perdrait des lignes.
        with contextlib.suppress(OSError, ValueError, AttributeError):  # Windows l'a depuis 3.12
            os.set_blocking(stream.fileno(), True)


def is_window(stream: object) -> bool:
    """Renvoie True si ce flux (sys.stdin…) est celui d'une fenêtre : IDLE, Thonny, Jupyter…"""
    # Elles remplacent les flux de Python par les leurs, dont isatty() et fileno() sont trompeurs.
    return stream is not None and not isinstance(stream, io.TextIOWrapper)


def session_goes_on() -> bool:
    """Renvoie True si l'interpréteur continue ensuite : fenêtre, %run d'IPython, python3 -i."""
    in_window = is_window(sys.stdin) or is_window(sys.stdout)
    return in_window or hasattr(sys, "ps1") or bool(sys.flags.interactive)
