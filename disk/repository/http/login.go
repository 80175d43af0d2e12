package http

import (
	nethttp "net/http"
	"strings"

	"hayloft/cloud/fault"
	"hayloft/disk/repository/secret"
)

// login is who we say we are. The files are read for each request, so that what they hold can be changed.
type login struct {
	user, passwordFile, tokenFile string
}

func newLogin(options map[string]string, scheme string) (login, error) {
	l := login{user: options["USER"], passwordFile: options["PASSWORD_FILE"], tokenFile: options["TOKEN_FILE"]}
	plain, err := secret.Yes(options, "PLAIN_CREDENTIALS")
	switch {
	case err != nil:
		return l, err
	case (l.user == "") != (l.passwordFile == ""):
		return l, fault.Errorf(fault.Invalid, "USER and PASSWORD_FILE go together")
	case l.user != "" && l.tokenFile != "":
		return l, fault.Errorf(fault.Invalid, "both USER and TOKEN_FILE: one of them")
	case strings.ContainsAny(l.user, ":\r\n"):
		return l, fault.Errorf(fault.Invalid, "USER %q has a colon or a line break", l.user)
	case l != login{} && scheme == "http" && !plain:
		return l, fault.Errorf(fault.Invalid, "credentials over http:// can be read by everybody on the way: use https://, or say PLAIN_CREDENTIALS = YES")
	}
	return l, nil
}

// sign puts the credentials into a request.
func (l login) sign(request *nethttp.Request) error {
	switch {
	case l.tokenFile != "":
		token, err := secret.Read("TOKEN_FILE", l.tokenFile)
		if err != nil {
			return err
		}
		request.Header.Set("Authorization", "Bearer "+token)
	case l.user != "":
		password, err := secret.Read("PASSWORD_FILE", l.passwordFile)
		if err != nil {
			return err
		}
		request.SetBasicAuth(l.user, password)
	}
	return nil
}
