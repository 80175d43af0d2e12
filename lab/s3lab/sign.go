package s3lab

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const skew = 15 * time.Minute

// authorize checks the signature ("Authenticating Requests: Using the Authorization Header", AWS4-HMAC-SHA256).
func (s *Server) authorize(r *http.Request, body []byte) *apiError {
	rest, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok {
		return fail(403, "AccessDenied", "Access Denied.")
	}
	fields := map[string]string{}
	for f := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(f), "=")
		fields[name] = value
	}
	scope := strings.Split(fields["Credential"], "/")
	signed := strings.Split(fields["SignedHeaders"], ";")
	when, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	switch {
	case len(scope) != 5 || err != nil || scope[1] != when.Format("20060102") || scope[3] != "s3" || scope[4] != "aws4_request":
		return fail(400, "AuthorizationHeaderMalformed", "The authorization header is malformed")
	case scope[0] != s.config.AccessKey:
		return fail(403, "InvalidAccessKeyId", "The access key ID you provided does not exist in our records")
	case scope[2] != s.config.Region:
		return fail(400, "AuthorizationHeaderMalformed", "The region '"+scope[2]+"' is wrong; expecting '"+s.config.Region+"'")
	case time.Since(when).Abs() > skew:
		return fail(403, "RequestTimeTooSkewed", "The difference between the request time and the server's time is too large")
	case !slices.Contains(signed, "host") || !slices.Contains(signed, "x-amz-date") || !slices.Contains(signed, "x-amz-content-sha256"):
		return fail(403, "AccessDenied", "There were headers present in the request which were not signed")
	}
	for name := range r.Header { // all of Amazon's must be signed
		if lower := strings.ToLower(name); strings.HasPrefix(lower, "x-amz-") && !slices.Contains(signed, lower) {
			return fail(403, "AccessDenied", "There were headers present in the request which were not signed: "+lower)
		}
	}
	payload := r.Header.Get("X-Amz-Content-Sha256")
	switch {
	case payload == "UNSIGNED-PAYLOAD" && r.TLS != nil:
	case payload == "UNSIGNED-PAYLOAD" || strings.HasPrefix(payload, "STREAMING-"):
		if len(body) > 0 {
			return fail(501, "NotImplemented", "payload "+payload)
		}
	case payload != sha(body):
		return fail(400, "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed")
	}
	canonical := strings.Join([]string{r.Method, pathOf(r), queryOf(r.URL.Query()), headersOf(r, signed), fields["SignedHeaders"], payload}, "\n")
	text := "AWS4-HMAC-SHA256\n" + r.Header.Get("X-Amz-Date") + "\n" + strings.Join(scope[1:], "/") + "\n" + sha([]byte(canonical))
	key := []byte("AWS4" + s.config.SecretKey)
	for _, part := range scope[1:] {
		key = mac(key, part)
	}
	if !hmac.Equal([]byte(hex.EncodeToString(mac(key, text))), []byte(fields["Signature"])) {
		return fail(403, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided")
	}
	return nil
}

func mac(key []byte, text string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(text))
	return m.Sum(nil)
}

func sha(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func pathOf(r *http.Request) string {
	elements := strings.Split(r.URL.Path, "/")
	for i, e := range elements {
		elements[i] = escape(e)
	}
	return strings.Join(elements, "/")
}

func queryOf(q url.Values) string {
	var pairs []string
	for name, values := range q {
		for _, v := range values {
			pairs = append(pairs, escape(name)+"="+escape(v))
		}
	}
	slices.Sort(pairs)
	return strings.Join(pairs, "&")
}

func headersOf(r *http.Request, signed []string) string {
	var b strings.Builder
	for _, name := range signed {
		value := r.Header.Get(name)
		switch name {
		case "host":
			value = r.Host
		case "content-length":
			value = ""
		}
		b.WriteString(name + ":" + strings.Join(strings.Fields(value), " ") + "\n")
	}
	return b.String()
}

// escape leaves the unreserved characters of RFC 3986.
func escape(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}
