"""Who gets in and who does not, by key, token and cookie."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moshi_server.auth import (
    CODES,
    EXPIRED_TOKEN,
    INVALID_KEY,
    JWT_VALIDATION_FAILED,
    MISSING_CREDENTIALS,
    Authenticator,
    Caller,
    mask,
    refusal,
)
from moshi_server.errors import AuthError

KEY = "public_token_of_the_house"
SECRET = "a secret of more than thirty-two bytes, as it should be"
NOW = datetime(2026, 11, 24, 6, 0, tzinfo=UTC)
AUTH = Authenticator([KEY, "second"], SECRET)


def iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def claims(**changes: Any) -> dict[str, Any]:
    return {
        "session": {
            "id": "s1",
            "userId": "u1",
            "createdAt": iso(NOW),
            "updatedAt": iso(NOW),
            "expiresAt": iso(NOW + timedelta(days=7)),
        },
        "user": {"id": "u1", "name": "Ada", "email": "ada@example.org"},
        "iat": int(NOW.timestamp()),
        "exp": int(NOW.timestamp()) + 300,
        **changes,
    }


def token(secret: str = SECRET, **changes: Any) -> str:
    return jwt.encode(claims(**changes), secret, algorithm="HS256")


def check(
    headers: dict[str, str] | list[tuple[str, str]] | None = None,
    query: dict[str, str] | None = None,
    *,
    auth: Authenticator = AUTH,
    at: datetime = NOW,
) -> Caller:
    items = headers.items() if isinstance(headers, dict) else headers or []
    return auth.check(items, query or {}, at.timestamp())


def refused(*args: Any, **kwargs: Any) -> AuthError:
    with pytest.raises(AuthError) as caught:
        check(*args, **kwargs)
    assert caught.value.code in CODES
    assert caught.value.message
    assert caught.value.hint
    return caught.value


def test_a_key_is_taken_from_the_header_or_the_query() -> None:
    assert check({"kyutai-api-key": KEY}) == Caller("api_key", "public...ouse")
    assert check({"Kyutai-Api-Key": "second"}) == Caller("api_key", "*hidden*")
    assert check(query={"auth_id": KEY}) == Caller("api_key", "public...ouse")


@pytest.mark.parametrize("key", ["wrong", KEY[:-1], KEY + "x", "é", KEY.upper(), "\ud800"])
def test_4_a_wrong_key_is_refused(key: str) -> None:
    assert refused({"kyutai-api-key": key}).code == INVALID_KEY
    assert refused(query={"auth_id": key}).code == INVALID_KEY


def test_a_token_is_taken_from_the_query_the_bearer_header_and_the_cookies() -> None:
    assert check(query={"auth_id": token()}) == Caller("token", "u1", "s1")
    assert check({"authorization": f"Bearer {token()}"}) == Caller("token", "u1", "s1")
    assert check({"authorization": f"bearer  {token()}"}) == Caller("token", "u1", "s1")
    for name in ("better-auth.session_data", "better-auth.session_token"):
        for prefix in ("", "__Secure-"):
            assert check({"cookie": f"a=b; {prefix}{name}={token()};c"}) == Caller("cookie", "u1", "s1")


def test_a_cookie_cut_in_chunks_is_put_together() -> None:
    whole = token(user={"id": "u1", "bio": "x" * 9000})
    parts = [whole[i : i + 800] for i in range(0, len(whole), 800)]
    assert len(parts) > 10, "so that .10 comes after .9 and not after .1"
    cookies = [f"better-auth.session_data.{i}={part}" for i, part in enumerate(parts)]
    assert check({"cookie": "; ".join(reversed(cookies))}) == Caller("cookie", "u1", "s1")
    assert check([("cookie", cookie) for cookie in cookies]) == Caller("cookie", "u1", "s1")
    assert refused({"cookie": "; ".join(cookies[1:])}).code == JWT_VALIDATION_FAILED


def test_4_the_first_credential_present_decides() -> None:
    good, bad = {"authorization": f"Bearer {token()}"}, {"kyutai-api-key": "wrong"}
    assert refused({**good, **bad}).code == INVALID_KEY
    assert check({"kyutai-api-key": KEY}, {"auth_id": "wrong"}).method == "api_key"
    assert refused(good, {"auth_id": "wrong"}).code == INVALID_KEY
    assert refused({"authorization": "Bearer x", "cookie": f"better-auth.session_data={token()}"}).code == (
        JWT_VALIDATION_FAILED
    )


def test_what_is_empty_or_of_another_scheme_is_not_present() -> None:
    assert check({"kyutai-api-key": " "}, {"auth_id": KEY}).method == "api_key"
    cookie = f"better-auth.session_data={token()}"
    assert check({"authorization": "Basic YTpi", "cookie": cookie}, {"auth_id": ""}).method == "cookie"
    assert refused({"authorization": "Bearer ", "cookie": "better-auth.session_data="}).code == MISSING_CREDENTIALS
    assert refused().code == MISSING_CREDENTIALS


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": int(NOW.timestamp())},
        {"exp": int(NOW.timestamp()) - 1},
        {"session": {**claims()["session"], "expiresAt": iso(NOW)}},
        {"session": {**claims()["session"], "expiresAt": "2026-11-24T07:00:00+02:00"}},
        {"session": {**claims()["session"], "expiresAt": "2026-11-24T05:59:59"}},
    ],
)
def test_an_expired_session_is_refused(changes: dict[str, Any]) -> None:
    assert refused({"authorization": f"Bearer {token(**changes)}"}).code == EXPIRED_TOKEN


def test_exp_may_be_absent_and_the_session_still_ends() -> None:
    without = claims()
    del without["exp"]
    headers = {"authorization": f"Bearer {jwt.encode(without, SECRET, algorithm='HS256')}"}
    assert check(headers).method == "token"
    assert refused(headers, at=NOW + timedelta(days=7)).code == EXPIRED_TOKEN


def segment(value: object) -> str:
    return urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def without(part: str, field: str) -> dict[str, Any]:
    return {part: {key: value for key, value in claims()[part].items() if key != field}}


RSA_LIKE = f"{segment({'alg': 'RS256', 'typ': 'JWT'})}.{segment(claims())}.{segment('signature')}"
NONE = f"{segment({'alg': 'none', 'typ': 'JWT'})}.{segment(claims())}."


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (token(secret="another secret, which is also long enough"), "signature does not match"),
        (token()[:-3] + "AAA", "signature does not match"),
        (".".join([token().split(".")[0], segment(claims(user={"id": "root"})), token().split(".")[2]]), "signature"),
        (NONE, "not signed with HS256"),
        (NONE.replace(segment({"alg": "none", "typ": "JWT"}), segment({"alg": "None"})), "not signed with HS256"),
        (RSA_LIKE, "not signed with HS256"),
        (jwt.encode(claims(), SECRET, algorithm="HS384"), "not signed with HS256"),
        ("eyJ.x.y", "malformed"),
        ("ey..", "malformed"),
        (token(session="s1"), "no 'session'"),
        (token(user=None), "no 'user'"),
        *((token(**without("session", field)), f"'session' has no '{field}'") for field in claims()["session"]),
        (token(**without("user", "id")), "'user' has no 'id'"),
        (token(user={"id": 5}), "'user' has no 'id'"),
        (token(session={**claims()["session"], "expiresAt": "next week"}), "not an ISO 8601 date"),
        (token(nbf=int(NOW.timestamp()) + 60), "not valid yet"),
        (jwt.encode({"exp": True}, SECRET, algorithm="HS256"), "no 'session'"),
    ],
)
def test_a_token_that_is_not_better_auths_is_refused(bad: str, reason: str) -> None:
    for headers, query in (
        ({"authorization": f"Bearer {bad}"}, {}),
        ({}, {"auth_id": bad}),
        ({"cookie": f"better-auth.session_data={bad}"}, {}),
    ):
        error = refused(headers, query)
        assert error.code == JWT_VALIDATION_FAILED
        assert reason in error.message
        assert bad not in str(refusal(error))


def test_an_opaque_session_token_says_what_to_enable() -> None:
    error = refused({"cookie": "better-auth.session_token=abcdef.c2lnbmF0dXJl"})
    assert error.code == JWT_VALIDATION_FAILED
    assert "cookieCache" in error.hint


def test_a_good_cookie_beside_a_stale_one_is_enough() -> None:
    stale = token(exp=1)
    cookie = (
        f"better-auth.session_token=opaque.c2ln; __Secure-better-auth.session_data={stale}; better-auth.session_data="
    )
    assert check({"cookie": cookie + token()}).method == "cookie"
    assert refused({"cookie": cookie}).code == EXPIRED_TOKEN


def test_without_a_secret_no_token_is_accepted() -> None:
    keys_only = Authenticator([KEY])
    assert refused({"authorization": f"Bearer {token()}"}, auth=keys_only).code == JWT_VALIDATION_FAILED
    assert refused(query={"auth_id": token()}, auth=keys_only).code == INVALID_KEY


def test_with_nothing_configured_everything_is_refused_and_the_notes_say_how() -> None:
    closed = Authenticator(["", " "], "")
    assert refused(auth=closed).code == MISSING_CREDENTIALS
    assert refused({"kyutai-api-key": ""}, auth=closed).code == MISSING_CREDENTIALS
    assert refused({"kyutai-api-key": "x"}, auth=closed).code == INVALID_KEY
    assert refused({"authorization": f"Bearer {token()}"}, auth=closed).code == JWT_VALIDATION_FAILED
    (note,) = closed.notes()
    assert "MOSHI_API_KEY" in note
    assert "BETTER_AUTH_SECRET" in note


def test_notes_mask_keys_and_warn_of_a_short_secret() -> None:
    short = Authenticator([KEY], "hunter2")
    notes = " ".join(short.notes())
    assert "public...ouse" in notes
    assert "shorter than 32 bytes" in notes
    assert KEY not in notes
    assert "hunter2" not in notes
    with pytest.warns(UserWarning, match="below the minimum"):
        short_token = token(secret="hunter2")
    assert check({"authorization": f"Bearer {short_token}"}, auth=short).method == "token"


@pytest.mark.parametrize(
    ("key", "shown"), [("", "*hidden*"), ("0123456789", "*hidden*"), ("0123456789A", "012345...789A")]
)
def test_4_masking(key: str, shown: str) -> None:
    assert mask(key) == shown


def test_the_refusal_has_exactly_four_fields() -> None:
    assert list(refusal(refused())) == ["error", "code", "message", "hint"]
    assert refusal(refused())["error"] == "unauthorized"


relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
texts = st.text(max_size=60) | st.builds(".".join, st.lists(st.text("eyJ.=-_aA0", max_size=20), min_size=3, max_size=3))
names = st.sampled_from(["kyutai-api-key", "authorization", "cookie", "Cookie", "x"])
values = texts | texts.map(lambda text: "Bearer " + text) | texts.map(lambda text: "better-auth.session_data=" + text)


@relaxed
@given(st.lists(st.tuples(names, values), max_size=5), st.dictionaries(st.sampled_from(["auth_id", "x"]), texts))
def test_4_no_random_header_cookie_or_query_gets_in_or_crashes(
    headers: list[tuple[str, str]], query: dict[str, str]
) -> None:
    error = refused(headers, query)
    assert KEY not in str(refusal(error))
    assert SECRET not in str(refusal(error))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@relaxed
@given(st.sampled_from(["session", "user", "exp", "nbf"]), json_values)
def test_signed_nonsense_never_crashes(part: str, value: Any) -> None:
    signed = token(**{part: value})
    try:
        outcome: object = check({"authorization": f"Bearer {signed}"})
    except AuthError as error:
        outcome = error.code
    assert outcome in (EXPIRED_TOKEN, JWT_VALIDATION_FAILED, Caller("token", "u1", "s1"))


def test_deeply_nested_json_is_only_malformed() -> None:
    deep = urlsafe_b64encode(b"[" * 20_000).rstrip(b"=").decode()
    for text in (f"ey{deep}.{deep}.x", f"{token().split('.')[0]}.{deep}.x", f"{deep}.{deep}.{deep}"):
        assert refused({"authorization": f"Bearer {text}"}).code == JWT_VALIDATION_FAILED
    assert "ey" not in refused(query={"auth_id": "ey" + deep + "..."}).message.split()
