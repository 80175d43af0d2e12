package agent

// Enrolled reports whether the agent that keeps its state in the directory has its certificate, so that
// it needs no token.
func Enrolled(stateDir string) bool {
	id, err := loadIdentity(stateDir)
	return err == nil && id != nil && len(id.Certificate) > 0
}
