package proof

type baseScenario struct{ *runner }

func (s *baseScenario) run() {}
