package httpapi

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"tomato/domain"
)

func TestConditionalHeaders(t *testing.T) {
	t.Parallel()
	const at = 3 // the resource's version
	for header, want := range map[string]string{
		`"3"`: "met", "3": "met", "*": "met", ` * `: "met", `"2", "3"`: "met", `"2","3"`: "met", "\"3\" ,\t\"2\"": "met", `, "3",,`: "met", `W/"3", "3"`: "met",
		`"a,b", "3"`: "met", `"ü"`: "not met", `"2"`: "not met", `W/"3"`: "not met", `"abc"`: "not met", `"03"`: "not met", `""`: "not met", `"0"`: "not met",
		`"1", "2"`: "not met", `W/"3", W/"2"`: "not met", `"99999999999999999999"`: "not met",
		"abc": "bad", `"3`: "bad", "-1": "bad", "W/3": "bad", `w/"3"`: "bad", `"3" "4"`: "bad", `"3", *`: "bad", `*, "3"`: "bad", ",": "bad", `"a b"`: "bad", `"3"x`: "bad", `"3", x`: "bad",
	} {
		var m IfMatch
		got := "bad"
		if m.UnmarshalText([]byte(header)) == nil {
			got = "met"
			if m.Check(at) != nil {
				got = "not met"
			}
			if m.Check(0) == nil {
				t.Errorf("%s is met by what does not exist", header)
			}
		}
		if got != want {
			t.Errorf("%s: %s, want %s", header, got, want)
		}
	}
	if (IfMatch{}).Check(0) != nil || (IfMatch{}).Check(at) != nil {
		t.Error("no header is not met")
	}
	a := testAPI(t, io.Discard)
	for want, tags := range map[int][]string{201: {`"7"`, `"1"`}, 412: {`"7"`, `W/"1"`}, 422: {`"1"`, "*"}} { // the header comes in several lines
		r := httptest.NewRequest("POST", "/v1/orders", strings.NewReader(goodOrder))
		r.Header = http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + mint(t, domain.Actor{Sub: "c1", Role: domain.Customer})}, "If-Match": tags}
		w := httptest.NewRecorder()
		if a.ServeHTTP(w, r); w.Code != want {
			t.Errorf("%v: %d %s", tags, w.Code, w.Body)
		}
	}
	for header, want := range map[string]string{
		"": "", "k1": "k1", `"k1"`: "k1", `""`: "bad", "a b": "bad", "é": "bad", strings.Repeat("k", 255): strings.Repeat("k", 255), strings.Repeat("k", 256): "bad",
	} {
		k, err := ParseIdempotencyKey(header)
		if err != nil {
			k = "bad"
		}
		if k != want {
			t.Errorf("%q: %q", header, k)
		}
	}
}

// A text has a visible character and no control characters. A line has no line feed
// either. plain and validation agree on this (TestPlain).
func TestTexts(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"a", "é", "7", "!", "€", "अ", "日本", "👍", "👨‍👩‍👧", " a ", "e\u0301", "\u200fשלום", "a\u200bb", "नमस्ते", "\ufffd"} {
		for _, format := range []string{formatText, formatLine} {
			if f := textFault(format, s); f != "" {
				t.Errorf("%q is refused: %s", s, f)
			}
		}
	}
	for what, s := range map[string]string{"nothing": "", "spaces": " \t\u00a0\u2003\u3000", "zero width": "\u200b\u200c\u200d\u2060\ufeff", "combining": "\u0301\u0902",
		"bidi": "\u200e\u200f\u202a\u202e\u2066\u2069\u061c", "soft hyphen": "\u00ad", "fillers": "\u3164\u115f\u1160\uffa0\u2800", "variation": "\ufe0f\U000e0100",
		"tags": "\U000e0041", "private": "\ue000", "not assigned": "\u0378", "NUL": "a\x00b", "escape": "a\x1b[2Jb", "DEL": "a\x7fb", "C1": "a\u0085b", "CR": "a\rb", "bell": "a\ab",
		"not UTF-8": "a\xffb", "501": strings.Repeat("é", 501)} {
		for _, format := range []string{formatText, formatLine} {
			if textFault(format, s) == "" {
				t.Errorf("%s is taken", what)
			}
		}
	}
	for _, s := range []string{"4 Church Street\nthird floor", "a\tb"} {
		if f := textFault(formatText, s); f != "" || textFault(formatLine, s) == "" {
			t.Errorf("%q: as text %q, as line %q", s, f, textFault(formatLine, s))
		}
	}
	// The same characters as escapes, and half of a surrogate pair.
	a := testAPI(t, io.Discard)
	for address, status := range map[string]int{`\u0061`: 201, `\ud83d\udc4d`: 201, `\u200b`: 422, `a\u0007`: 422, `a\ud83d`: 422, `a\udc4d\ud83d`: 422, `\\ud83d`: 201, `a\nb`: 201} {
		res, p, body := do(t, a, call{method: "POST", path: "/v1/orders", body: strings.Replace(goodOrder, "  12 Main Street <A&B> ", address, 1),
			header: map[string]string{"Content-Type": "application/json", "Authorization": "Bearer " + mint(t, domain.Actor{Sub: "c1", Role: domain.Customer})}})
		if res.StatusCode != status || status == 422 && p.Errors[0].Location != "body.deliverTo.address" {
			t.Errorf("%s: %d %s", address, res.StatusCode, body)
		}
	}
}
