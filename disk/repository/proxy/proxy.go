// Package proxy is what repositories over HTTP have in common about proxies. Options of the datastore:
//
//	PROXY                http://[USER@]HOST:PORT or https://; without it the environment says (HTTPS_PROXY, HTTP_PROXY, NO_PROXY)
//	PROXY_PASSWORD_FILE  a file with the password of USER, that only its owner can read
//
// A password goes to a proxy at http:// only with PLAIN_CREDENTIALS = YES.
package proxy

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"hayloft/cloud/fault"
	"hayloft/disk/repository/secret"
)

// Set makes transport use the proxy that options say. The file is read for each connection, so that what it holds can
// be changed. fault.Invalid.
func Set(transport *http.Transport, options map[string]string) error {
	transport.OnProxyConnectResponse = refused
	text, file := options["PROXY"], options["PROXY_PASSWORD_FILE"]
	if text == "" {
		transport.Proxy = http.ProxyFromEnvironment
		if file != "" {
			return fault.Errorf(fault.Invalid, "PROXY_PASSWORD_FILE without PROXY")
		}
		return nil
	}
	u, err := url.Parse(text)
	if err != nil {
		return fault.Errorf(fault.Invalid, "PROXY is no URL") // which may have a password in it
	}
	user := u.User.Username()
	_, open := u.User.Password()
	plain, err := secret.Yes(options, "PLAIN_CREDENTIALS")
	switch {
	case err != nil:
		return err
	case open:
		return fault.Errorf(fault.Invalid, "PROXY has a password in it: use PROXY_PASSWORD_FILE")
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		return fault.Errorf(fault.Invalid, "PROXY %q is not http://[USER@]HOST:PORT", text)
	case (user == "") != (file == ""):
		return fault.Errorf(fault.Invalid, "a user in PROXY and PROXY_PASSWORD_FILE go together")
	case user != "" && u.Scheme == "http" && !plain:
		return fault.Errorf(fault.Invalid, "the password of a proxy at http:// can be read by everybody on the way: use https://, or say PLAIN_CREDENTIALS = YES")
	}
	transport.Proxy = func(*http.Request) (*url.URL, error) {
		with := *u
		if user != "" {
			password, err := secret.Read("PROXY_PASSWORD_FILE", file)
			if err != nil {
				return nil, err
			}
			with.User = url.UserPassword(user, password)
		}
		return &with, nil
	}
	return nil
}

// refused classifies what a proxy answers to CONNECT where another attempt cannot help.
func refused(_ context.Context, _ *url.URL, _ *http.Request, answer *http.Response) error {
	switch answer.StatusCode {
	case http.StatusProxyAuthRequired, http.StatusUnauthorized, http.StatusForbidden:
		return fault.As(fault.Permission, fmt.Errorf("the proxy answered %s", answer.Status))
	}
	return nil
}
